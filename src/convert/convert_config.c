/* config.json of a converted model: the source's members, in their order, with those of the
 * attention replaced; see conversion.h. */
#include "convert/conversion.h"
#include "model/json_optional.h"
#include "model/python_text.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

__attribute__((format(printf, 2, 3))) static void add(msa__text *text, const char *format, ...)
{
    char line[256];
    va_list list;
    va_start(list, format);
    (void)vsnprintf(line, sizeof(line), format, list);
    va_end(list);
    msa__text_puts(text, line);
}

/* Members that this file writes, wherever they stood. */
static const char *const replaced[] = {
    "architectures",          "model_type",       "layer_types",       "index_n_heads",
    "index_head_dim",         "index_block_size", "index_topk_blocks", "index_local_blocks",
    "index_init_blocks",      "auto_map",         "converted_from",    "text_config",
    "sparse_attention_config"};

static int32_t is_replaced(const char *key)
{
    for (size_t i = 0; i < sizeof(replaced) / sizeof(replaced[0]); i++) {
        if (!strcmp(key, replaced[i])) return 1;
    }
    return 0;
}

/* Every other member of an object, each with a comma behind. */
static void add_others(msa__text *text, const msa__json *object, const char *indent)
{
    MSA__JSON_EACH(member, object)
    {
        if (is_replaced(member->key)) continue;
        msa__text_puts(text, indent);
        msa__python_json_key(text, member);
        if (text->status == MSA_OK) text->status = msa__python_json(text, member);
        msa__text_puts(text, ",\n");
    }
}

static void add_copied(msa__text *text, const msa__json *object, const char *key,
                       const char *indent)
{
    const msa__json *value = msa__json_get(object, key);
    if (!value) return;
    add(text, "%s\"%s\": ", indent, key);
    if (text->status == MSA_OK) text->status = msa__python_json(text, value);
    msa__text_puts(text, ",\n");
}

/* ---- Llama and Qwen3 ----------------------------------------------------------------------- */

static void add_flattened(const msa__conversion *c, msa__text *text, const char *indent)
{
    const msa_convert_args *args = &c->args;
    add(text, "%s\"index_n_heads\": %d,\n", indent, c->source.n_kv_heads);
    add(text, "%s\"index_head_dim\": %d,\n", indent, c->source.head_dim);
    add(text, "%s\"index_block_size\": %d,\n", indent, args->block_size);
    add(text, "%s\"index_topk_blocks\": %d,\n", indent, args->topk_blocks);
    add(text, "%s\"index_local_blocks\": %d,\n", indent, args->n_local_blocks);
    add(text, "%s\"index_init_blocks\": %d,\n", indent, args->n_init_blocks);
    add(text, "%s\"layer_types\": [", indent);
    for (int32_t i = 0; i < c->source.n_layers; i++) {
        add(text, "%s\"%s\"", i ? ", " : "",
            c->is_dense[i] ? "full_attention" : "minimax_m3_sparse");
    }
    msa__text_puts(text, "]\n");
}

static void add_gqa(const msa__conversion *c, msa__text *text)
{
    int32_t llama = c->source.family == MSA__FAMILY_LLAMA;
    add(text, "{\n  \"architectures\": [\"%s\"],\n  \"model_type\": \"%s\",\n",
        llama ? "MSALlamaForCausalLM" : "MSAQwen3ForCausalLM", llama ? "msa_llama" : "msa_qwen3");
    add(text, "  \"converted_from\": \"%s\",\n", c->source.architecture);
    add_others(text, c->root, "  ");
    add_flattened(c, text, "  ");
    msa__text_puts(text, "}\n");
}

/* ---- MiniMax-M3's shape -------------------------------------------------------------------- */

static void add_flags(const msa__conversion *c, msa__text *text, const char *indent,
                      const char *key)
{
    add(text, "%s  \"%s\": [", indent, key);
    for (int32_t i = 0; i < c->source.n_layers; i++) {
        add(text, "%s%d", i ? ", " : "", !c->is_dense[i]);
    }
}

static void add_released(const msa__conversion *c, msa__text *text, const char *indent)
{
    const msa_convert_args *args = &c->args;
    add(text, "%s\"sparse_attention_config\": {\n", indent);
    add(text, "%s  \"use_sparse_attention\": true,\n", indent);
    add(text, "%s  \"sparse_num_index_heads\": %d,\n", indent, c->source.n_kv_heads);
    add(text, "%s  \"sparse_index_dim\": %d,\n", indent, c->source.head_dim);
    add(text, "%s  \"sparse_block_size\": %d,\n", indent, args->block_size);
    add(text, "%s  \"sparse_topk_blocks\": %d,\n", indent, args->topk_blocks);
    add(text, "%s  \"sparse_local_block\": %d,\n", indent, args->n_local_blocks);
    add(text, "%s  \"sparse_init_block\": %d,\n", indent, args->n_init_blocks);
    add(text, "%s  \"sparse_score_type\": \"max\",\n", indent);
    add_flags(c, text, indent, "sparse_attention_freq");
    msa__text_puts(text, "],\n");
    add_flags(c, text, indent, "sparse_disable_index_value");
    add(text, "]\n%s}\n", indent);
}

static void add_m3(const msa__conversion *c, msa__text *text)
{
    const msa__json *inner = msa__json_get(c->root, "text_config");
    const msa__json *source = inner ? inner : c->root;
    const char *indent = inner ? "    " : "  ";
    msa__text_puts(text, "{\n");
    add_copied(text, c->root, "architectures", "  ");
    add_copied(text, c->root, "model_type", "  ");
    add_others(text, c->root, "  ");
    if (inner) {
        msa__text_puts(text, "  \"text_config\": {\n");
        add_copied(text, inner, "architectures", indent);
        add_copied(text, inner, "model_type", indent);
        add_others(text, inner, indent);
    }
    if (msa__json_get(source, "layer_types") && !msa__json_get(source, "moe_layer_freq")) {
        add_flattened(c, text, indent);
    } else {
        add_released(c, text, indent);
    }
    msa__text_puts(text, inner ? "  }\n}\n" : "}\n");
}

void msa__conversion_config(const msa__conversion *conversion, msa__text *text)
{
    if (conversion->source.family == MSA__FAMILY_M3) {
        add_m3(conversion, text);
    } else {
        add_gqa(conversion, text);
    }
}
