/* Model folders: configuration, tokenizer, chat prompt, weights. Hugging Face layout, read only. */
#ifndef MSA_MODEL_H
#define MSA_MODEL_H

#include "msa/layer.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- text in and out ---------------------------------------------------------------------- */

typedef struct msa_tokenizer msa_tokenizer;

/* Read tokenizer.json (byte-level BPE) of a folder.
 *
 * Ownership *out is owned: msa_tokenizer_close; immutable afterwards, any thread may use it
 * Errors    MSA_EIO missing file; MSA_EFORMAT file, key, value and rule; MSA_EUNSUPPORTED a
 * tokenizer feature that is not supported, by name; MSA_ENOMEM
 */
MSA_API MSA_CHECK_RESULT msa_status msa_tokenizer_open(msa_tokenizer **out, const char *dir);
MSA_API void msa_tokenizer_close(msa_tokenizer *tokenizer);

/* Ids of a UTF-8 text (bytes may contain NUL); added tokens in the text become their ids, nothing
 * is added at the ends. Invalid UTF-8 gives MSA_EFORMAT with the byte offset.
 *
 * Ownership *ids is owned: msa_free; NULL for an empty text
 */
MSA_API MSA_CHECK_RESULT msa_status msa_tokenizer_encode(const msa_tokenizer *tokenizer,
                                                         const char *text, size_t text_bytes,
                                                         int32_t **ids, size_t *n_ids);

/* Bytes of a token sequence, special tokens included; not necessarily whole UTF-8 characters.
 * *text is NUL-terminated beyond text_bytes and owned: msa_free. */
MSA_API MSA_CHECK_RESULT msa_status msa_tokenizer_decode(const msa_tokenizer *tokenizer,
                                                         const int32_t *ids, size_t n_ids,
                                                         char **text, size_t *text_bytes);

MSA_API int32_t msa_tokenizer_size(const msa_tokenizer *tokenizer); /* largest id + 1 */
MSA_API int32_t msa_tokenizer_find(const msa_tokenizer *tokenizer,
                                   const char *token); /* -1: none */

/* The first character of bytes[0..n): its length, and whether it is valid. Of an ill-formed sequence,
 * the length of the part that one U+FFFD stands for (at least 1 unless n = 0), and *valid = 0. */
MSA_API size_t msa_utf8_next(const char *bytes, size_t n, int32_t *valid);

/* Length of the longest prefix that does not end inside a character which more bytes could complete:
 * what a stream of decoded tokens can show so far. */
MSA_API size_t msa_utf8_complete(const char *bytes, size_t n);

/* Memory returned by the functions of this header. */
MSA_API void msa_free(void *ptr);

/* Render a conversation exactly as MiniMax-M3's chat template does.
 *
 * request   JSON object {"messages": [...], "tools": [...] or null, "options": {...}}; options:
 *           add_generation_prompt, thinking_mode, model_identity; other keys are ignored
 * Ownership *text is owned: msa_free
 * Errors    MSA_EFORMAT malformed JSON; MSA_EINVAL a template error, msa_last_error() is exactly
 * the template's text; MSA_ENOMEM
 */
MSA_API MSA_CHECK_RESULT msa_status msa_chat_render(const char *request, size_t request_bytes,
                                                    char **text, size_t *text_bytes);

/* MSA_OK when the prompt above is the one of the model in a folder: dir/config.json says MiniMax-M3.
 * Errors    MSA_EUNSUPPORTED another model_type; MSA_EIO, MSA_EFORMAT */
MSA_API MSA_CHECK_RESULT msa_status msa_chat_check(const char *dir);

/* ---- configuration ------------------------------------------------------------------------ */

typedef struct msa_model_info {
    uint32_t struct_size;
    uint32_t flags;
    char architecture[64];
    int32_t n_layers, n_sparse_layers, n_moe_layers;
    int32_t hidden_size, vocab_size;
    int32_t n_q_heads, n_kv_heads, head_dim, index_dim;
    int32_t block_size, topk_blocks, n_init_blocks, n_local_blocks;
    int32_t n_experts, n_experts_per_token, n_shared_experts;
    int32_t expert_width, shared_width, dense_width;
    int64_t max_positions;
    int64_t n_parameters, n_active_parameters; /* active: without embedding and head */
    int64_t weight_bytes;
    int64_t active_weight_bytes; /* read per decoded token, head included */
    char quantization[16];       /* "", "mxfp8" */
    int32_t n_kv_layers;         /* with keys and values in the cache: all but Lightning */
    int32_t n_index_layers;      /* with index keys there: MSA and DSA */
    int32_t n_mean_layers;       /* with mean keys of blocks there, f32: MoBA */
    int32_t reserved;
    int64_t state_bytes; /* of a session, whatever its length: Lightning */
} msa_model_info;
MSA_ARGS_INIT(msa_model_info)

typedef struct msa_model msa_model;

/* Open a model folder: config.json (MiniMax-M3 in its released or its flattened transformers-5 layout,
 * Llama, Qwen3) and safetensors by mmap, released or transformers tensor names. Lazy: weights are read when used, or
 * copied to a device by msa_model_load.
 *
 * Ownership *out is owned: msa_model_close; ctx is retained
 * Errors    MSA_EIO, MSA_EFORMAT: file, tensor or key, value and rule; MSA_EUNSUPPORTED a config
 * value that is not supported, by name; MSA_ENOMEM
 */
MSA_API MSA_CHECK_RESULT msa_status msa_model_open(msa_model **out, msa_context *ctx,
                                                   const char *dir);
MSA_API void msa_model_close(msa_model *model);
MSA_API MSA_CHECK_RESULT msa_status msa_model_get_info(const msa_model *model,
                                                       msa_model_info *info);

/* The same from config.json alone, for a folder without weights: bytes are those of a released
 * checkpoint, bf16 or as quantization_config says. */
MSA_API MSA_CHECK_RESULT msa_status msa_model_info_from_config(const char *dir,
                                                               msa_model_info *info);

/* Kind of layer i: *sparse_attention (MSA) and *moe, 0 or 1. */
MSA_API MSA_CHECK_RESULT msa_status msa_model_layer_kind(const msa_model *model, int32_t layer,
                                                         int32_t *sparse_attention, int32_t *moe);

/* The attention of layer i by its name in layer_types, "full_attention" or "minimax_m3_sparse"; static. */
MSA_API MSA_CHECK_RESULT msa_status msa_model_layer_attention(const msa_model *model, int32_t layer,
                                                              const char **name);

/* Sampling defaults and stop tokens: generation_config.json, then config.json. */
typedef struct msa_generation_config {
    uint32_t struct_size;
    uint32_t flags;
    int32_t do_sample;
    float temperature, top_p;
    int32_t top_k;
    float repetition_penalty;
    int32_t bos_token_id; /* -1: none */
    int32_t n_eos;
    int32_t eos_token_ids[8];
} msa_generation_config;
MSA_ARGS_INIT(msa_generation_config)
MSA_API MSA_CHECK_RESULT msa_status msa_model_generation_config(const msa_model *model,
                                                                msa_generation_config *config);

/* Read every weight and refuse NaN, infinity and NaN scales: MSA_EFORMAT names file, tensor and
 * element. Opening looks at the small vectors only. done and total are bytes; progress may be NULL.
 */
typedef void (*msa_progress_fn)(void *user, int64_t done, int64_t total);
MSA_API MSA_CHECK_RESULT msa_status msa_model_verify(const msa_model *model,
                                                     msa_progress_fn progress, void *user);

/* Bring the weights to where the operators of the model's context read them. A device backend copies
 * them once; on a host backend they stay mapped and nothing happens. msa_engine_create does it
 * silently when it has not been done. done and total are bytes; progress may be NULL.
 *
 * Errors    MSA_EDEVMEM with the sizes; MSA_ENOMEM, MSA_EDEVICE
 */
MSA_API MSA_CHECK_RESULT msa_status msa_model_load(msa_model *model, msa_progress_fn progress,
                                                   void *user);

/* Write a small random M3-shaped checkpoint with tokenizer, as real folders look.
 *
 * preset    a name from msa_model_preset; seed decides the weights, the same everywhere
 * Errors    MSA_EINVAL unknown preset (the message lists them), MSA_EIO, MSA_ENOMEM
 */
MSA_API MSA_CHECK_RESULT msa_status msa_model_make(const char *dir, const char *preset,
                                                   uint64_t seed, msa_progress_fn progress,
                                                   void *user);
/* Name and one-line description of preset i; NULL past the end. */
MSA_API const char *msa_model_preset(int32_t i, const char **description);

#ifdef __cplusplus
}
#endif
#endif
