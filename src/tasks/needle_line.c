/* Keys, values and the sentence that binds them; see needle_line.h. */
#include "tasks/needle_line.h"

#include "tasks/word_list.h"

#include <stdio.h>

#define N_NUMBERS 9000000 /* 1000000..9999999 */

static const char *const plural[] = {"", "words", "numbers", "uuids"};

const char *msa__type_plural(int32_t type)
{
    return plural[type];
}

int64_t msa__n_keys(int32_t key_type)
{
    if (key_type == MSA_TASK_WORD) return (int64_t)msa__n_adjectives * msa__n_nouns;
    return key_type == MSA_TASK_NUMBER ? N_NUMBERS : INT64_MAX >> 16;
}

static void write_number(const msa__task *task, int32_t stream, int64_t i, char *text)
{
    uint64_t number = msa__draw_distinct(&task->draws, stream, (uint64_t)i, N_NUMBERS);
    snprintf(text, MSA__REFERENCE_BYTES, "%d", (int)(1000000 + number));
}

/* Version 4: 122 random bits. */
static void write_uuid(const msa__task *task, int32_t stream, int64_t i, char *text)
{
    uint32_t w[4];
    for (uint64_t j = 0; j < 4; j++) w[j] = msa__draw(&task->draws, stream, (uint64_t)i * 4 + j);
    snprintf(text, MSA__REFERENCE_BYTES, "%08x-%04x-4%03x-%04x-%04x%08x", (unsigned)w[0],
             (unsigned)(w[1] >> 16), (unsigned)(w[1] & 0xfff), (unsigned)(0x8000 | w[2] >> 18),
             (unsigned)(w[2] & 0xffff), (unsigned)w[3]);
}

void msa__write_key(const msa__task *task, int64_t i, char *key)
{
    int32_t type = task->preset.key_type;
    if (type == MSA_TASK_WORD) {
        uint64_t n_nouns = (uint64_t)msa__n_nouns;
        uint64_t pair = msa__draw_distinct(&task->draws, MSA__STREAM_KEY, (uint64_t)i,
                                           (uint64_t)msa__n_keys(type));
        snprintf(key, MSA__REFERENCE_BYTES, "%s-%s", msa__adjectives[pair / n_nouns],
                 msa__nouns[pair % n_nouns]);
    } else if (type == MSA_TASK_NUMBER) {
        write_number(task, MSA__STREAM_KEY, i, key);
    } else {
        write_uuid(task, MSA__STREAM_KEY, i, key);
    }
}

void msa__write_value(const msa__task *task, int64_t i, char *value)
{
    int32_t type = task->preset.value_type;
    if (type == MSA_TASK_WORD) {
        uint64_t n = (uint64_t)msa__n_nouns; /* needles of the haystack may share words */
        uint64_t noun = msa__draw_distinct(&task->draws, MSA__STREAM_VALUE, (uint64_t)i % n, n);
        snprintf(value, MSA__REFERENCE_BYTES, "%s", msa__nouns[noun]);
    } else if (type == MSA_TASK_NUMBER) {
        write_number(task, MSA__STREAM_VALUE, i, value);
    } else {
        write_uuid(task, MSA__STREAM_VALUE, i, value);
    }
}

void msa__write_needle(const msa__task *task, const char *key, const char *value, char *text,
                       size_t bytes)
{
    snprintf(text, bytes, "One of the special magic %s for %s is: %s.",
             plural[task->preset.value_type], key, value);
}
