/* Ctrl-C as a question that loops ask, instead of the end of the program. */
#ifndef CLI_INTERRUPT_H
#define CLI_INTERRUPT_H

/* From now on the first Ctrl-C is only remembered; a second one before cli_interrupt_clear ends the
 * program as usual, unless it comes within the same second or the next. */
void cli_interrupt_catch(void);

int cli_interrupted(void);
void cli_interrupt_clear(void);

#endif
