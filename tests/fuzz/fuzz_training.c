/* Training configurations: any text gives an error or stages that can be walked through. */
#include "fuzz/fuzz.h"

#include "train/train_config.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static msa__train_config config;
    if (msa__train_config_parse(&config, "fuzz", (const char *)data, bytes) != MSA_OK) return 0;
    FUZZ_CHECK(config.output && *config.output && config.data && config.tokenizer);
    FUZZ_CHECK(config.model_config || config.init_from);
    FUZZ_CHECK(config.n_stages >= 1 && config.n_stages <= MSA__MAX_STAGES);
    for (int32_t i = 0; i < config.n_stages; i++) {
        const msa__stage *s = &config.stages[i];
        FUZZ_CHECK(s->name && s->steps > 0 && s->tokens / s->steps == s->step_tokens);
        FUZZ_CHECK(s->step_tokens % s->micro_tokens == 0 && s->micro_tokens % s->length == 0);
        for (int64_t step = 0; step < s->steps && step < 8; step++) {
            double share = msa__schedule_share(s, step);
            FUZZ_CHECK(share >= 0 && share <= 1);
        }
    }
    msa__train_config_free(&config);
    return 0;
}
