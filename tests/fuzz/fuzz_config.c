/* config.json: any text gives an error or numbers that fit together. */
#include "fuzz/fuzz.h"

#include "model/config.h"
#include "model/layout.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static msa__config config;
    const msa__json *root;
    if (msa__json_parse(&root, NULL, "fuzz", (const char *)data, bytes) != MSA_OK) return 0;
    msa_status status = msa__config_parse(&config, root);
    msa__json_free(root);
    if (status != MSA_OK) return 0;
    msa__counts counts;
    msa__layout_count(&config, &counts);
    FUZZ_CHECK(counts.n_parameters > 0 && counts.n_active_parameters > 0);
    FUZZ_CHECK(counts.n_active_parameters <= counts.n_parameters);
    FUZZ_CHECK(counts.active_weight_bytes <= counts.weight_bytes);
    FUZZ_CHECK(config.n_layers <= MSA__MAX_LAYERS && config.rotary_dim <= config.head_dim);
    FUZZ_CHECK(config.n_init_blocks + config.n_local_blocks <= config.topk_blocks ||
               config.topk_blocks == 0);
    msa__config_free(&config);
    return 0;
}
