# What the Python wheel takes from this build: the operator libraries, beside the package's files.
set(libraries msa)
if(TARGET msa_cuda)
  list(APPEND libraries msa_cuda)
endif()
add_custom_target(msa_python DEPENDS ${libraries})
foreach(library ${libraries})
  # One file under its SONAME: wheels hold no symbolic links.
  install(FILES $<TARGET_FILE:${library}> DESTINATION msa COMPONENT python EXCLUDE_FROM_ALL
    RENAME $<TARGET_SONAME_FILE_NAME:${library}>)
endforeach()
