/* Status texts and the calling thread's last error message. */
#include "base/error.h"

#include <stdarg.h>
#include <stdio.h>

static _Thread_local char last_error[512];

const char *msa_status_text(msa_status status)
{
    switch (status) {
#define STATUS_CASE(name, value, text)                                                             \
    case value: return text;
        MSA_STATUS_MAP(STATUS_CASE)
#undef STATUS_CASE
    default: return "unknown status";
    }
}

const char *msa_last_error(void)
{
    return last_error;
}

void msa__set_error(const char *format, ...)
{
    va_list list;
    va_start(list, format);
    (void)vsnprintf(last_error, sizeof(last_error), format, list);
    va_end(list);
    /* One line always: names quoted from files may hold anything. */
    for (char *c = last_error; *c; c++) {
        if ((unsigned char)*c < 0x20 || *c == 0x7f) *c = ' ';
    }
}
