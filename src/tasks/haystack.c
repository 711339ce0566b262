/* Filler units in order, each hidden line before its unit; see haystack.h. */
#include "tasks/haystack.h"

#include "tasks/needle_line.h"
#include "tasks/sentences.h"

#include <string.h>

#define TEXT_STEPS 40

const char msa__noise_line[] = "The kettle is warm. The road is long. The lamp is lit. On we walk. "
                               "Round the hill and home again.";

int64_t msa__haystack_max_units(const msa__task *task)
{
    if (task->preset.haystack != MSA_HAYSTACK_NEEDLES) return INT64_MAX >> 16;
    return msa__n_keys(task->preset.key_type) - MSA__MAX_NEEDLES;
}

void msa__haystack_fractions(const msa__task *task, msa__needle *needles, int32_t n_needles)
{
    for (int32_t i = 0; i < n_needles; i++) {
        if (task->preset.haystack == MSA_HAYSTACK_TEXT) {
            uint64_t step =
                msa__draw_distinct(&task->draws, MSA__STREAM_DEPTH, (uint64_t)i, TEXT_STEPS);
            needles[i].fraction = (double)step / (TEXT_STEPS - 1);
        } else {
            needles[i].fraction =
                (double)msa__draw(&task->draws, MSA__STREAM_DEPTH, (uint64_t)i) * 0x1p-32;
        }
    }
}

/* The unit that a needle goes before; n_units: after the last one. */
static int64_t place(const msa__needle *needle, int64_t n_units)
{
    int64_t unit = (int64_t)(needle->fraction * (double)(n_units + 1));
    return unit < n_units ? unit : n_units;
}

static void add_unit(const msa__task *task, int64_t unit, msa__sentences *sentences,
                     msa__string *out)
{
    if (task->preset.haystack == MSA_HAYSTACK_NOISE) {
        msa__string_print(out, "%s", msa__noise_line);
    } else if (task->preset.haystack == MSA_HAYSTACK_TEXT) {
        msa__sentences_add(sentences, out);
    } else {
        char key[MSA__REFERENCE_BYTES], value[MSA__REFERENCE_BYTES], line[MSA__NEEDLE_BYTES];
        msa__write_key(task, MSA__MAX_NEEDLES + unit, key);
        msa__write_value(task, MSA__MAX_NEEDLES + unit, value);
        msa__write_needle(task, key, value, line, sizeof(line));
        msa__string_print(out, "%s", line);
    }
}

void msa__haystack_write(const msa__task *task, int64_t n_units, const msa__needle *needles,
                         int32_t n_needles, msa__draft *draft)
{
    const char *separator = task->preset.haystack == MSA_HAYSTACK_TEXT ? " " : "\n";
    msa__string *out = &draft->prompt;
    size_t begin = out->n, offsets[MSA__MAX_NEEDLES] = {0};
    msa__sentences sentences;
    msa__sentences_begin(&sentences, task);
    for (int64_t unit = 0; unit <= n_units; unit++) {
        for (int32_t i = 0; i < n_needles; i++) {
            if (place(&needles[i], n_units) != unit) continue;
            if (out->n > begin) msa__string_add(out, separator, 1);
            offsets[i] = out->n - begin;
            msa__string_print(out, "%s", needles[i].text);
        }
        if (unit == n_units) break;
        if (out->n > begin) msa__string_add(out, separator, 1);
        add_unit(task, unit, &sentences, out);
    }
    for (int32_t i = 0; i < n_needles; i++) {
        if (!needles[i].matters) continue;
        draft->depths[draft->n_depths++] = (double)offsets[i] / (double)(out->n - begin);
    }
}
