# What `cmake --install` puts where: program, libraries, headers, pkg-config files, manual, completion.
include(GNUInstallDirs)

file(RELATIVE_PATH MSA_LIB_FROM_BIN ${CMAKE_INSTALL_FULL_BINDIR} ${CMAKE_INSTALL_FULL_LIBDIR})
set_target_properties(msa_program PROPERTIES INSTALL_RPATH "$ORIGIN/${MSA_LIB_FROM_BIN}")
set_target_properties(msa msa_engine PROPERTIES INSTALL_RPATH "$ORIGIN")
install(TARGETS msa msa_engine msa_program)
install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/msa TYPE INCLUDE FILES_MATCHING PATTERN "*.h")

# pkg-config: paths are relative to the file, so that a staged or moved tree works.
file(RELATIVE_PATH MSA_PREFIX_FROM_PC ${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig ${CMAKE_INSTALL_PREFIX})
foreach(name msa msa-engine)
  configure_file(${PROJECT_SOURCE_DIR}/cmake/${name}.pc.in ${PROJECT_BINARY_DIR}/${name}.pc @ONLY)
  install(FILES ${PROJECT_BINARY_DIR}/${name}.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
endforeach()

# The manual and the completion come from the program's own tables.
if(NOT CMAKE_CROSSCOMPILING)
  set(share ${PROJECT_BINARY_DIR}/share)
  add_custom_command(OUTPUT ${share}/msa.1 ${share}/msa.bash ${share}/_msa ${share}/msa.fish
    COMMAND ${CMAKE_COMMAND} -E make_directory ${share}
    COMMAND msa_program --man > ${share}/msa.1
    COMMAND msa_program --completion bash > ${share}/msa.bash
    COMMAND msa_program --completion zsh > ${share}/_msa
    COMMAND msa_program --completion fish > ${share}/msa.fish
    DEPENDS msa_program VERBATIM)
  add_custom_target(msa_share ALL DEPENDS ${share}/msa.1)
  install(FILES ${share}/msa.1 DESTINATION ${CMAKE_INSTALL_MANDIR}/man1)
  install(FILES ${share}/msa.bash DESTINATION ${CMAKE_INSTALL_DATADIR}/bash-completion/completions
    RENAME msa)
  install(FILES ${share}/_msa DESTINATION ${CMAKE_INSTALL_DATADIR}/zsh/site-functions)
  install(FILES ${share}/msa.fish DESTINATION ${CMAKE_INSTALL_DATADIR}/fish/vendor_completions.d)
endif()
