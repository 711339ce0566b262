/* Presets and their configuration files; see make_preset.h.
 *
 * All have M3's structure: a first layer with full attention and a dense MLP, then MSA layers with
 * experts. "small" and "1b" also have M3's head shape, 16 query heads of 128 per key head, blocks
 * of 128 and K = 16, so that what they cost per token of context is what M3 costs. "small" selects
 * in every layer, as M3.1 does: one full layer of four would cost more than all the others.
 */
#include "model/make_preset.h"

#include "model/make_tokenizer.h"

#include <stdarg.h>
#include <stdio.h>

const msa__preset msa__presets[] = {
    {.name = "tiny",
     .description = "1 MB, blocks of 16 and K = 4: for tests",
     .hidden_size = 64,
     .n_layers = 4,
     .n_full_layers = 1,
     .n_dense_layers = 1,
     .n_q_heads = 4,
     .n_kv_heads = 2,
     .head_dim = 32,
     .block_size = 16,
     .topk_blocks = 4,
     .n_experts = 8,
     .n_experts_per_token = 2,
     .expert_width = 48,
     .shared_width = 48,
     .dense_width = 96,
     .max_positions = 65536},
    {.name = "mxfp8-tiny",
     .description = "2 MB, the same with MXFP8 weights",
     .hidden_size = 128,
     .n_layers = 4,
     .n_full_layers = 1,
     .n_dense_layers = 1,
     .n_q_heads = 8,
     .n_kv_heads = 2,
     .head_dim = 32,
     .block_size = 16,
     .topk_blocks = 4,
     .n_experts = 8,
     .n_experts_per_token = 2,
     .expert_width = 64,
     .shared_width = 64,
     .dense_width = 128,
     .max_positions = 65536,
     .mxfp8 = 1},
    {.name = "small",
     .description = "120 MB with M3's head shape, block and K: for demonstrations",
     .hidden_size = 256,
     .n_layers = 4,
     .n_full_layers = 0,
     .n_dense_layers = 1,
     .n_q_heads = 16,
     .n_kv_heads = 1,
     .head_dim = 128,
     .block_size = 128,
     .topk_blocks = 16,
     .n_experts = 64,
     .n_experts_per_token = 4,
     .expert_width = 384,
     .shared_width = 384,
     .dense_width = 1536,
     .max_positions = 1048576},
    {.name = "1b",
     .description = "1.2 GB with M3's head shape, two KV heads and 32 experts: for benchmarks",
     .hidden_size = 1024,
     .n_layers = 8,
     .n_full_layers = 1,
     .n_dense_layers = 1,
     .n_q_heads = 32,
     .n_kv_heads = 2,
     .head_dim = 128,
     .block_size = 128,
     .topk_blocks = 16,
     .n_experts = 32,
     .n_experts_per_token = 4,
     .expert_width = 768,
     .shared_width = 768,
     .dense_width = 4096,
     .max_positions = 1048576},
};
const int32_t msa__n_presets = (int32_t)(sizeof(msa__presets) / sizeof(msa__presets[0]));

__attribute__((format(printf, 2, 3))) static void add_line(msa__text *text, const char *format, ...)
{
    char line[256];
    va_list list;
    va_start(list, format);
    (void)vsnprintf(line, sizeof(line), format, list);
    va_end(list);
    msa__text_puts(text, line);
    msa__text_puts(text, "\n");
}

/* "key": [0, …, 0, 1, …, 1] */
static void add_flags(msa__text *text, const char *key, int32_t n_zeros, int32_t n, const char *end)
{
    msa__text_puts(text, key);
    for (int32_t i = 0; i < n; i++) {
        msa__text_puts(text, i == 0 ? "[" : ", ");
        msa__text_puts(text, i < n_zeros ? "0" : "1");
    }
    msa__text_puts(text, "]");
    msa__text_puts(text, end);
}

static void add_sparse_attention(const msa__preset *p, msa__text *t)
{
    add_line(t, "    \"sparse_attention_config\": {");
    add_line(t, "      \"use_sparse_attention\": true,");
    add_line(t, "      \"sparse_num_index_heads\": %d,", p->n_kv_heads);
    add_line(t, "      \"sparse_index_dim\": %d,", p->head_dim);
    add_line(t, "      \"sparse_block_size\": %d,", p->block_size);
    add_line(t, "      \"sparse_topk_blocks\": %d,", p->topk_blocks);
    add_line(t, "      \"sparse_local_block\": 1,");
    add_line(t, "      \"sparse_score_type\": \"max\",");
    if (!p->attention) {
        add_flags(t, "      \"sparse_attention_freq\": ", p->n_full_layers, p->n_layers, ",\n");
        add_flags(t, "      \"sparse_disable_index_value\": ", p->n_full_layers, p->n_layers,
                  ",\n");
    }
    add_line(t, "      \"sparse_init_block\": 0");
    add_line(t, "    }");
}

static void add_text_config(const msa__preset *p, msa__text *t)
{
    add_line(t, "  \"text_config\": {");
    add_line(t, "    \"architectures\": [\"MiniMaxM3SparseForCausalLM\"],");
    add_line(t, "    \"hidden_size\": %d,", p->hidden_size);
    add_line(t, "    \"num_hidden_layers\": %d,", p->n_layers);
    add_line(t, "    \"num_attention_heads\": %d,", p->n_q_heads);
    add_line(t, "    \"num_key_value_heads\": %d,", p->n_kv_heads);
    add_line(t, "    \"head_dim\": %d,", p->head_dim);
    add_line(t, "    \"vocab_size\": %d,", MSA__MADE_VOCAB);
    add_line(t, "    \"max_position_embeddings\": %d,", p->max_positions);
    add_line(t, "    \"rms_norm_eps\": 1e-06,");
    add_line(t, "    \"use_gemma_norm\": true,");
    add_line(t, "    \"use_qk_norm\": true,");
    add_line(t, "    \"qk_norm_type\": \"per_head\",");
    add_line(t, "    \"attention_output_gate\": false,");
    add_line(t, "    \"rope_theta\": 5000000,");
    add_line(t, "    \"rotary_dim\": %d,", p->head_dim / 2);
    add_line(t, "    \"partial_rotary_factor\": 0.5,");
    add_line(t, "    \"hidden_act\": \"swigluoai\",");
    add_line(t, "    \"swiglu_alpha\": 1.702,");
    add_line(t, "    \"swiglu_limit\": 7.0,");
    add_line(t, "    \"intermediate_size\": %d,", p->expert_width);
    add_line(t, "    \"shared_intermediate_size\": %d,", p->shared_width);
    add_line(t, "    \"dense_intermediate_size\": %d,", p->dense_width);
    add_line(t, "    \"num_local_experts\": %d,", p->n_experts);
    add_line(t, "    \"num_experts_per_tok\": %d,", p->n_experts_per_token);
    add_line(t, "    \"n_shared_experts\": 1,");
    add_line(t, "    \"scoring_func\": \"sigmoid\",");
    add_line(t, "    \"use_routing_bias\": true,");
    add_line(t, "    \"routed_scaling_factor\": 2.0,");
    add_flags(t, "    \"moe_layer_freq\": ", p->n_dense_layers, p->n_layers, ",\n");
    add_line(t, "    \"num_mtp_modules\": 0,");
    add_line(t, "    \"tie_word_embeddings\": false,");
    if (p->attention) add_line(t, "    %s,", p->attention);
    add_sparse_attention(p, t);
    add_line(t, "  },");
}

static void add_quantization(const msa__preset *p, msa__text *t)
{
    add_line(t, "  \"quantization_config\": {");
    add_line(t, "    \"quant_method\": \"mxfp8\",");
    add_line(t, "    \"activation_scheme\": \"dynamic\",");
    add_line(t, "    \"weight_block_size\": [1, 32],");
    msa__text_puts(t, "    \"ignored_layers\": [\"lm_head\", \"model.embed_tokens\"");
    for (int32_t i = p->n_dense_layers; i < p->n_layers; i++) {
        char name[80];
        (void)snprintf(name, sizeof(name),
                       ", \"language_model.model.layers.%d.block_sparse_moe.gate\"", i);
        msa__text_puts(t, name);
    }
    add_line(t, "]");
    add_line(t, "  },");
}

void msa__preset_config(const msa__preset *p, msa__text *t)
{
    add_line(t, "{");
    add_line(t, "  \"architectures\": [\"MiniMaxM3SparseForConditionalGeneration\"],");
    add_line(t, "  \"model_type\": \"minimax_m3_vl\",");
    add_text_config(p, t);
    if (p->mxfp8) add_quantization(p, t);
    add_line(t, "  \"torch_dtype\": \"bfloat16\",");
    add_line(t, "  \"bos_token_id\": %d,", MSA__MADE_BOS);
    add_line(t, "  \"eos_token_id\": %d", MSA__MADE_EOS);
    add_line(t, "}");
}

void msa__preset_generation(msa__text *t)
{
    add_line(t, "{");
    add_line(t, "  \"do_sample\": true,");
    add_line(t, "  \"temperature\": 1.0,");
    add_line(t, "  \"top_p\": 0.95,");
    add_line(t, "  \"bos_token_id\": %d,", MSA__MADE_BOS);
    add_line(t, "  \"eos_token_id\": %d", MSA__MADE_EOS);
    add_line(t, "}");
}
