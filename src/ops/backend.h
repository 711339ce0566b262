/* The table every backend fills: one entry per operator, called with checked, completed arguments.
 *
 * "Completed" means: bytes beyond the caller's struct_size are zero, every zero that stands for a
 * default has been replaced (block_size, topk, n_local, scale, index_scale, fp8 scales), and shapes
 * agree. A backend checks nothing again. *_workspace returns the bytes its run call needs for these
 * arguments and ignores data pointers. Entries never allocate.
 */
#ifndef MSA_OPS_BACKEND_H
#define MSA_OPS_BACKEND_H

#include "base/threads.h"
#include "msa/baselines.h"
#include "msa/gradient.h"
#include "msa/graph.h"

/* Directions of memory_copy. */
enum {
    MSA__COPY_UPLOAD,
    MSA__COPY_DOWNLOAD,
    MSA__COPY_UPLOAD_ASYNC, /* the host side of these two comes from memory_alloc_host */
    MSA__COPY_DOWNLOAD_ASYNC,
    MSA__COPY_INSIDE
};

typedef struct msa__backend {
    const char *name;

    /* 1: tensors and arrays of operator arguments lie in the backend's own memory, whose contents
     * the host does not read: host-side argument checks stop at shapes, dtypes and pointers. */
    int32_t device_memory;

    /* Per-context state: a host backend chooses its ISA path, a device backend its device. */
    msa_status (*open)(msa_context *ctx, const msa_context_args *args);
    void (*close)(msa_context *ctx); /* NULL: nothing to close */
    const char *(*isa)(const msa_context *ctx);

    /* Memory of a device backend, see msa/memory.h; NULL for host backends. */
    msa_status (*memory_alloc)(msa_context *ctx, size_t bytes, void **out);
    void (*memory_free)(msa_context *ctx, void *ptr);
    msa_status (*memory_copy)(msa_context *ctx, void *dst, const void *src, size_t bytes,
                              int32_t kind);
    msa_status (*memory_alloc_host)(msa_context *ctx, size_t bytes, void **out);
    void (*memory_free_host)(msa_context *ctx, void *ptr);
    msa_status (*memory_info)(msa_context *ctx, int64_t *free_bytes, int64_t *total_bytes);
    msa_status (*synchronize)(msa_context *ctx);

    /* Recordings, see msa/graph.h; NULL for host backends. */
    msa_status (*graph_begin)(msa_context *ctx);
    msa_status (*graph_end)(msa_context *ctx, msa_graph **out);
    msa_status (*graph_launch)(msa_context *ctx, msa_graph *graph);
    void (*graph_destroy)(msa_context *ctx, msa_graph *graph);

    size_t (*select_workspace)(const msa_context *ctx, const msa_select_args *args);
    msa_status (*select)(msa_context *ctx, const msa_select_args *args, void *workspace);
    msa_status (*block_topk)(msa_context *ctx, const msa_block_topk_args *args);

    size_t (*attend_workspace)(const msa_context *ctx, const msa_attend_args *args);
    msa_status (*attend)(msa_context *ctx, const msa_attend_args *args, void *workspace);
    /* In the larger of both workspaces. NULL: one after the other. */
    msa_status (*select_attend)(msa_context *ctx, const msa_select_args *select,
                                const msa_attend_args *attend, void *workspace);
    size_t (*dense_attend_workspace)(const msa_context *ctx, const msa_dense_attend_args *args);
    msa_status (*dense_attend)(msa_context *ctx, const msa_dense_attend_args *args,
                               void *workspace);
    msa_status (*attend_merge)(msa_context *ctx, const msa_attend_merge_args *args);
    msa_status (*kv_append)(msa_context *ctx, const msa_kv_append_args *args);
    msa_status (*index_quantize)(msa_context *ctx, const msa_index_quantize_args *args);

    /* Baselines (msa/baselines.h). NULL: this backend does not have the operator. */
    msa_status (*window_blocks)(msa_context *ctx, const msa_window_blocks_args *args);
    msa_status (*block_means)(msa_context *ctx, const msa_block_means_args *args);
    size_t (*moba_select_workspace)(const msa_context *ctx, const msa_moba_select_args *args);
    msa_status (*moba_select)(msa_context *ctx, const msa_moba_select_args *args, void *workspace);
    msa_status (*layernorm)(msa_context *ctx, const msa_layernorm_args *args);
    size_t (*layernorm_backward_workspace)(const msa_context *ctx,
                                           const msa_layernorm_backward_args *args);
    msa_status (*layernorm_backward)(msa_context *ctx, const msa_layernorm_backward_args *args,
                                     void *workspace);
    size_t (*token_select_workspace)(const msa_context *ctx, const msa_token_select_args *args);
    msa_status (*token_select)(msa_context *ctx, const msa_token_select_args *args,
                               void *workspace);
    size_t (*token_attend_workspace)(const msa_context *ctx, const msa_token_attend_args *args);
    msa_status (*token_attend)(msa_context *ctx, const msa_token_attend_args *args,
                               void *workspace);
    size_t (*token_attend_backward_workspace)(const msa_context *ctx,
                                              const msa_token_attend_backward_args *args);
    msa_status (*token_attend_backward)(msa_context *ctx,
                                        const msa_token_attend_backward_args *args,
                                        void *workspace);
    size_t (*token_kl_workspace)(const msa_context *ctx, const msa_token_kl_args *args);
    msa_status (*token_kl)(msa_context *ctx, const msa_token_kl_args *args, void *workspace);
    size_t (*lightning_workspace)(const msa_context *ctx, const msa_lightning_args *args);
    msa_status (*lightning)(msa_context *ctx, const msa_lightning_args *args, void *workspace);
    msa_status (*sigmoid_gate)(msa_context *ctx, const msa_sigmoid_gate_args *args);
    size_t (*lightning_backward_workspace)(const msa_context *ctx,
                                           const msa_lightning_backward_args *args);
    msa_status (*lightning_backward)(msa_context *ctx, const msa_lightning_backward_args *args,
                                     void *workspace);
    msa_status (*sigmoid_gate_backward)(msa_context *ctx,
                                        const msa_sigmoid_gate_backward_args *args);

    msa_status (*embed)(msa_context *ctx, const msa_embed_args *args);
    msa_status (*rmsnorm)(msa_context *ctx, const msa_rmsnorm_args *args);
    msa_status (*rope)(msa_context *ctx, const msa_rope_args *args);
    size_t (*linear_workspace)(const msa_context *ctx, const msa_linear_args *args);
    msa_status (*linear)(msa_context *ctx, const msa_linear_args *args, void *workspace);
    msa_status (*swiglu)(msa_context *ctx, const msa_swiglu_args *args);
    msa_status (*router)(msa_context *ctx, const msa_router_args *args);
    size_t (*moe_workspace)(const msa_context *ctx, const msa_moe_args *args);
    msa_status (*moe)(msa_context *ctx, const msa_moe_args *args, void *workspace);

    /* Gradients (msa/gradient.h). NULL: this backend does not train. */
    size_t (*reverse_index_workspace)(const msa_context *ctx, const msa_reverse_index_args *args);
    msa_status (*reverse_index)(msa_context *ctx, const msa_reverse_index_args *args,
                                void *workspace);
    size_t (*attend_backward_workspace)(const msa_context *ctx,
                                        const msa_attend_backward_args *args);
    msa_status (*attend_backward)(msa_context *ctx, const msa_attend_backward_args *args,
                                  void *workspace);
    size_t (*dense_attend_backward_workspace)(const msa_context *ctx,
                                              const msa_dense_attend_backward_args *args);
    msa_status (*dense_attend_backward)(msa_context *ctx,
                                        const msa_dense_attend_backward_args *args,
                                        void *workspace);
    size_t (*index_kl_workspace)(const msa_context *ctx, const msa_index_kl_args *args);
    msa_status (*index_kl)(msa_context *ctx, const msa_index_kl_args *args, void *workspace);
    size_t (*block_mass_workspace)(const msa_context *ctx, const msa_block_mass_args *args);
    msa_status (*block_mass)(msa_context *ctx, const msa_block_mass_args *args, void *workspace);

    size_t (*embed_backward_workspace)(const msa_context *ctx, const msa_embed_backward_args *args);
    msa_status (*embed_backward)(msa_context *ctx, const msa_embed_backward_args *args,
                                 void *workspace);
    size_t (*rmsnorm_backward_workspace)(const msa_context *ctx,
                                         const msa_rmsnorm_backward_args *args);
    msa_status (*rmsnorm_backward)(msa_context *ctx, const msa_rmsnorm_backward_args *args,
                                   void *workspace);
    size_t (*linear_backward_workspace)(const msa_context *ctx,
                                        const msa_linear_backward_args *args);
    msa_status (*linear_backward)(msa_context *ctx, const msa_linear_backward_args *args,
                                  void *workspace);
    msa_status (*swiglu_backward)(msa_context *ctx, const msa_swiglu_backward_args *args);
    size_t (*router_backward_workspace)(const msa_context *ctx,
                                        const msa_router_backward_args *args);
    msa_status (*router_backward)(msa_context *ctx, const msa_router_backward_args *args,
                                  void *workspace);
    size_t (*moe_backward_workspace)(const msa_context *ctx, const msa_moe_backward_args *args);
    msa_status (*moe_backward)(msa_context *ctx, const msa_moe_backward_args *args,
                               void *workspace);
    msa_status (*cross_entropy)(msa_context *ctx, const msa_cross_entropy_args *args);
    msa_status (*adamw)(msa_context *ctx, const msa_adamw_args *args);
    size_t (*sum_squares_workspace)(const msa_context *ctx, const msa_sum_squares_args *args);
    msa_status (*sum_squares)(msa_context *ctx, const msa_sum_squares_args *args, void *workspace);
} msa__backend;

extern const msa__backend msa__ref_backend;
extern const msa__backend msa__cpu_backend;

/* The CUDA backend lives in libmsa_cuda.so, opened when a context first asks for it; it exports one
 * function that returns its table. MSA__BACKEND_ABI changes with this header. */
#define MSA__BACKEND_ABI 6
typedef struct msa__backend_host { /* what the plugin needs of the library that opens it */
    void (*set_error)(const char *format, ...);
} msa__backend_host;
typedef const msa__backend *(*msa__backend_entry)(int32_t abi, const msa__backend_host *host);
msa_status msa__cuda_backend(const msa__backend **out);

struct msa__cpu_kernels;

struct msa_context {
    msa_allocator allocator;
    const msa__backend *backend;
    msa__pool *pool;
    const struct msa__cpu_kernels *cpu_kernels; /* set by the cpu backend's open */
    void *device_state;                         /* set by a device backend's open */
};

#endif
