/* Task files: any bytes give samples that can be asked, or an error. */
#include "fuzz/fuzz.h"

#include "eval/ruler_file.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static msa_tokenizer *tokenizer; /* lives as long as the program */
    msa_ruler_file *file;
    if (!tokenizer) FUZZ_CHECK(msa_tokenizer_open(&tokenizer, FUZZ_TOKENIZER_DIR) == MSA_OK);
    msa_status status =
        msa__ruler_read(&file, "qa_1/fuzz.jsonl", (const char *)data, bytes, tokenizer);
    FUZZ_CHECK((status == MSA_OK) == (file != NULL));
    if (!file) return 0;
    FUZZ_CHECK(file->n_lines > 0 && file->max_tokens > 0);
    for (int64_t i = 0; i < file->n_lines; i++) {
        msa__ruler_sample sample;
        FUZZ_CHECK(msa__ruler_sample_get(file, i, &sample) == MSA_OK);
        FUZZ_CHECK(sample.n_outputs > 0 && sample.input && sample.prefix && sample.kind);
        double score = msa_answer_score(sample.input, strlen(sample.input), sample.outputs,
                                        sample.n_outputs, sample.kind->any_one);
        FUZZ_CHECK(score >= 0 && score <= 1);
        msa__ruler_sample_free(&sample);
    }
    msa_ruler_close(file);
    return 0;
}
