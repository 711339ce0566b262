/* config.json of a model folder, checked and flattened. Layer kinds are data, never assumed. */
#ifndef MSA_MODEL_CONFIG_H
#define MSA_MODEL_CONFIG_H

#include "model/json.h"
#include "msa/model.h"

#define MSA__MAX_LAYERS 1024

/* What a layer's attention is. config.json may name only the kinds that run. */
typedef enum msa__attention_kind {
    MSA__ATTENTION_DENSE, /* full causal attention */
    MSA__ATTENTION_MSA,
    MSA__ATTENTION_SWA,            /* sliding window */
    MSA__ATTENTION_WINDOW_CONTROL, /* the first block and the latest ones */
    MSA__ATTENTION_MOBA,           /* blocks by the product with their mean key, per query head */
    MSA__ATTENTION_MOBA_GROUP,     /* the same, per group */
    MSA__ATTENTION_LIGHTNING,      /* linear attention with decay: a state, no keys */
    MSA__ATTENTION_DSA             /* tokens by a score of their own index keys, for all heads */
} msa__attention_kind;

typedef struct msa__layer_kind {
    uint8_t attention; /* msa__attention_kind */
    uint8_t moe;       /* 1: mixture of experts; 0: dense MLP */
} msa__layer_kind;

/* Which model class a config is of; families differ in keys, tensor names, norms and MLPs. */
typedef enum msa__family {
    MSA__FAMILY_M3,
    MSA__FAMILY_LLAMA,
    MSA__FAMILY_QWEN3 /* Llama with per-head q/k norms */
} msa__family;

/* How RoPE's frequencies are stretched for contexts longer than those of the first training. */
typedef enum msa__rope_kind { MSA__ROPE_PLAIN, MSA__ROPE_LINEAR, MSA__ROPE_LLAMA3 } msa__rope_kind;

typedef struct msa__rope_scaling {
    msa__rope_kind kind;
    double factor;
    double low_freq_factor, high_freq_factor; /* llama3 */
    int64_t original_positions;               /* llama3: context of the first training */
} msa__rope_scaling;

typedef struct msa__config {
    char architecture[64];
    msa__family family;
    int32_t n_layers, hidden_size, vocab_size;
    int32_t n_q_heads, n_kv_heads, head_dim;
    int64_t max_positions;
    float rms_norm_eps;
    int32_t norm_one_plus; /* use_gemma_norm */
    int32_t qk_norm;       /* per-head q/k norm */
    double rope_theta;
    int32_t rotary_dim;
    msa__rope_scaling rope_scaling;
    msa_activation activation;
    int32_t dense_width, expert_width, shared_width;
    int32_t n_experts, n_experts_per_token, n_shared_experts; /* shared: 0 or 1 */
    float routed_scaling;
    int32_t router_bias; /* e_score_correction_bias is present */
    int32_t tie_embeddings;
    int32_t index_dim; /* of MSA and of DSA layers; 0 without either */
    int32_t topk_blocks, n_init_blocks, n_local_blocks; /* 0 without MSA layers */
    int32_t block_size;            /* of the selection; without MSA layers of the cache's pages */
    int32_t window;                /* tokens that sliding layers see, the current one included */
    int32_t window_blocks;         /* blocks of window-control layers, the first one included */
    int32_t moba_pages, moba_topk; /* cache pages of a MoBA block; blocks, the current included */
    int32_t dsa_heads, dsa_topk;   /* index heads, tokens that a query keeps */
    int32_t mxfp8;                 /* quantization_config.quant_method */
    int32_t n_ignored;
    char **ignored_layers;                  /* modules quantisation leaves alone; owned */
    int32_t image_token_id, video_token_id; /* -1: none */
    int32_t bos_token_id;                   /* -1: none */
    int32_t n_eos;
    int32_t eos_token_ids[8];
    msa__layer_kind layers[MSA__MAX_LAYERS];
} msa__config;

/* Read dir/config.json: MiniMax-M3 in the released or the flattened transformers-5 layout, Llama,
 * Qwen3, or one of the latter two with an index branch (docs/conversion.md).
 * Errors    MSA_EIO, MSA_EFORMAT (key, value, rule), MSA_EUNSUPPORTED (key, value), MSA_ENOMEM */
msa_status msa__config_read(msa__config *config, const char *dir);
/* The same for a parsed config.json. */
msa_status msa__config_parse(msa__config *config, const msa__json *root);
void msa__config_free(msa__config *config);

static inline int32_t msa__attention_is_moba(msa__attention_kind kind)
{
    return kind == MSA__ATTENTION_MOBA || kind == MSA__ATTENTION_MOBA_GROUP;
}

/* 1: the layer has an index branch, which chooses what a query sees and is taught by KL. */
static inline int32_t msa__attention_has_index(msa__attention_kind kind)
{
    return kind == MSA__ATTENTION_MSA || kind == MSA__ATTENTION_DSA;
}

/* n_local of msa_select_args: a model may force no newest block. */
static inline int32_t msa__config_n_local(const msa__config *config)
{
    return config->n_local_blocks ? config->n_local_blocks : -1;
}

/* How many layers have an index branch; are of a kind. */
int32_t msa__config_count_index(const msa__config *config);
int32_t msa__config_count_attention(const msa__config *config, msa__attention_kind kind);

/* Floats of the states of one sequence, in all Lightning layers. */
int64_t msa__config_state_floats(const msa__config *config);

/* 1: quantisation leaves the module alone: its name contains an ignored one, at dots. */
int32_t msa__config_ignores(const msa__config *config, const char *module);

/* Token ids under a key: absent, null, an integer or a list of at most 8. */
msa_status msa__json_token_ids(const msa__json *object, const char *key, int32_t *ids,
                               int32_t *n_ids);

#endif
