/* The layout of every public struct of libmsa, by number: a program compiled against yesterday's
 * headers passes these bytes. Structs grow at the end only, so a size may rise; an offset never
 * changes. */
#include "harness/cmocka_all.h"

#include "msa/baselines.h"
#include "msa/cache.h"
#include "msa/gradient.h"
#include "msa/layer.h"

typedef struct layout {
    const char *name;
    size_t actual, expected;
} layout;

/* clang-format off */
#define SIZE(type, bytes) {"sizeof " #type, sizeof(type), bytes}
#define AT(type, field, bytes) {#type "." #field, offsetof(type, field), bytes}

static const layout layouts[] = {
    SIZE(msa_tensor, 80), AT(msa_tensor, data, 0), AT(msa_tensor, dtype, 8),
    AT(msa_tensor, n_dims, 12), AT(msa_tensor, shape, 16), AT(msa_tensor, stride, 48),

    SIZE(msa_allocator, 24), AT(msa_allocator, user, 0), AT(msa_allocator, alloc, 8),
    AT(msa_allocator, free, 16),

    SIZE(msa_context_args, 48), AT(msa_context_args, struct_size, 0),
    AT(msa_context_args, flags, 4), AT(msa_context_args, allocator, 8),
    AT(msa_context_args, backend, 16), AT(msa_context_args, cpu_isa, 24),
    AT(msa_context_args, n_threads, 32), AT(msa_context_args, device, 36),
    AT(msa_context_args, stream, 40),

    SIZE(msa_plan, 16), AT(msa_plan, struct_size, 0), AT(msa_plan, op, 4),
    AT(msa_plan, workspace_bytes, 8),

    SIZE(msa_kv_view, 288), AT(msa_kv_view, k, 0), AT(msa_kv_view, v, 80),
    AT(msa_kv_view, k_index, 160), AT(msa_kv_view, page_table, 240),
    AT(msa_kv_view, page_table_stride, 248), AT(msa_kv_view, cu_seqlens_k, 256),
    AT(msa_kv_view, kv_lens, 264), AT(msa_kv_view, n_seqs, 272), AT(msa_kv_view, k_scale, 276),
    AT(msa_kv_view, v_scale, 280), AT(msa_kv_view, k_index_scale, 284),

    SIZE(msa_index8, 160), AT(msa_index8, keys, 0), AT(msa_index8, bounds, 80),

    SIZE(msa_select_args, 888), AT(msa_select_args, struct_size, 0), AT(msa_select_args, flags, 4),
    AT(msa_select_args, q_index, 8), AT(msa_select_args, kv, 88),
    AT(msa_select_args, cu_seqlens_q, 376), AT(msa_select_args, block_size, 384),
    AT(msa_select_args, topk, 388), AT(msa_select_args, n_init, 392),
    AT(msa_select_args, n_local, 396), AT(msa_select_args, index_scale, 400),
    AT(msa_select_args, settled, 404), AT(msa_select_args, blocks, 408),
    AT(msa_select_args, block_scores, 488), AT(msa_select_args, index_lse, 568),
    AT(msa_select_args, index8, 648), AT(msa_select_args, n_rescored, 808),

    SIZE(msa_block_topk_args, 192), AT(msa_block_topk_args, struct_size, 0),
    AT(msa_block_topk_args, flags, 4), AT(msa_block_topk_args, scores, 8),
    AT(msa_block_topk_args, n_visible, 88), AT(msa_block_topk_args, topk, 96),
    AT(msa_block_topk_args, n_init, 100), AT(msa_block_topk_args, n_local, 104),
    AT(msa_block_topk_args, reserved, 108), AT(msa_block_topk_args, blocks, 112),

    SIZE(msa_attend_args, 632), AT(msa_attend_args, struct_size, 0), AT(msa_attend_args, flags, 4),
    AT(msa_attend_args, q, 8), AT(msa_attend_args, kv, 88), AT(msa_attend_args, cu_seqlens_q, 376),
    AT(msa_attend_args, blocks, 384), AT(msa_attend_args, block_size, 464),
    AT(msa_attend_args, scale, 468), AT(msa_attend_args, out, 472), AT(msa_attend_args, lse, 552),

    SIZE(msa_select_attend_args, 24), AT(msa_select_attend_args, struct_size, 0),
    AT(msa_select_attend_args, flags, 4), AT(msa_select_attend_args, select, 8),
    AT(msa_select_attend_args, attend, 16),

    SIZE(msa_dense_attend_args, 576), AT(msa_dense_attend_args, struct_size, 0),
    AT(msa_dense_attend_args, flags, 4), AT(msa_dense_attend_args, q, 8),
    AT(msa_dense_attend_args, kv, 88), AT(msa_dense_attend_args, cu_seqlens_q, 376),
    AT(msa_dense_attend_args, block_size, 384), AT(msa_dense_attend_args, scale, 388),
    AT(msa_dense_attend_args, window, 392), AT(msa_dense_attend_args, n_sink_tokens, 400),
    AT(msa_dense_attend_args, sink_logit, 408), AT(msa_dense_attend_args, out, 416),
    AT(msa_dense_attend_args, lse, 496),

    SIZE(msa_attend_merge_args, 488), AT(msa_attend_merge_args, struct_size, 0),
    AT(msa_attend_merge_args, flags, 4), AT(msa_attend_merge_args, out_a, 8),
    AT(msa_attend_merge_args, lse_a, 88), AT(msa_attend_merge_args, out_b, 168),
    AT(msa_attend_merge_args, lse_b, 248), AT(msa_attend_merge_args, out, 328),
    AT(msa_attend_merge_args, lse, 408),

    SIZE(msa_kv_append_args, 552), AT(msa_kv_append_args, struct_size, 0),
    AT(msa_kv_append_args, flags, 4), AT(msa_kv_append_args, k, 8), AT(msa_kv_append_args, v, 88),
    AT(msa_kv_append_args, k_index, 168), AT(msa_kv_append_args, cu_seqlens_q, 248),
    AT(msa_kv_append_args, kv, 256), AT(msa_kv_append_args, block_size, 544),
    AT(msa_kv_append_args, reserved, 548),

    SIZE(msa_index_quantize_args, 480), AT(msa_index_quantize_args, struct_size, 0),
    AT(msa_index_quantize_args, flags, 4), AT(msa_index_quantize_args, kv, 8),
    AT(msa_index_quantize_args, cu_seqlens_q, 296), AT(msa_index_quantize_args, n_tokens, 304),
    AT(msa_index_quantize_args, block_size, 312), AT(msa_index_quantize_args, reserved, 316),
    AT(msa_index_quantize_args, index8, 320),

    SIZE(msa_cache_args, 96), AT(msa_cache_args, struct_size, 0), AT(msa_cache_args, flags, 4),
    AT(msa_cache_args, n_layers, 8), AT(msa_cache_args, n_kv_heads, 12),
    AT(msa_cache_args, head_dim, 16), AT(msa_cache_args, index_dim, 20),
    AT(msa_cache_args, block_size, 24), AT(msa_cache_args, max_seqs, 28),
    AT(msa_cache_args, layer_has_index, 32), AT(msa_cache_args, max_tokens, 40),
    AT(msa_cache_args, k_dtype, 48), AT(msa_cache_args, v_dtype, 52),
    AT(msa_cache_args, k_index_dtype, 56), AT(msa_cache_args, k_scale, 60),
    AT(msa_cache_args, v_scale, 64), AT(msa_cache_args, k_index_scale, 68),
    AT(msa_cache_args, index8, 72), AT(msa_cache_args, layer_has_means, 80),
    AT(msa_cache_args, layer_has_kv, 88),

    SIZE(msa_weight, 160), AT(msa_weight, w, 0), AT(msa_weight, scales, 80),

    SIZE(msa_embed_args, 176), AT(msa_embed_args, struct_size, 0), AT(msa_embed_args, flags, 4),
    AT(msa_embed_args, table, 8), AT(msa_embed_args, ids, 88), AT(msa_embed_args, out, 96),

    SIZE(msa_rmsnorm_args, 256), AT(msa_rmsnorm_args, struct_size, 0),
    AT(msa_rmsnorm_args, flags, 4), AT(msa_rmsnorm_args, x, 8), AT(msa_rmsnorm_args, weight, 88),
    AT(msa_rmsnorm_args, eps, 168), AT(msa_rmsnorm_args, one_plus, 172),
    AT(msa_rmsnorm_args, out, 176),

    SIZE(msa_rope_args, 192), AT(msa_rope_args, struct_size, 0), AT(msa_rope_args, flags, 4),
    AT(msa_rope_args, x, 8), AT(msa_rope_args, positions, 88), AT(msa_rope_args, inv_freq, 96),
    AT(msa_rope_args, n_freqs, 104), AT(msa_rope_args, inverse, 108), AT(msa_rope_args, out, 112),

    SIZE(msa_linear_args, 336), AT(msa_linear_args, struct_size, 0), AT(msa_linear_args, flags, 4),
    AT(msa_linear_args, x, 8), AT(msa_linear_args, weight, 88),
    AT(msa_linear_args, accumulate, 248), AT(msa_linear_args, any_order, 252),
    AT(msa_linear_args, out, 256),

    SIZE(msa_activation, 16), AT(msa_activation, kind, 0), AT(msa_activation, alpha, 4),
    AT(msa_activation, beta, 8), AT(msa_activation, limit, 12),

    SIZE(msa_swiglu_args, 264), AT(msa_swiglu_args, struct_size, 0), AT(msa_swiglu_args, flags, 4),
    AT(msa_swiglu_args, gate, 8), AT(msa_swiglu_args, up, 88), AT(msa_swiglu_args, activation, 168),
    AT(msa_swiglu_args, out, 184),

    SIZE(msa_router_args, 272), AT(msa_router_args, struct_size, 0), AT(msa_router_args, flags, 4),
    AT(msa_router_args, x, 8), AT(msa_router_args, weight, 88), AT(msa_router_args, bias, 168),
    AT(msa_router_args, topk, 248), AT(msa_router_args, scaling, 252),
    AT(msa_router_args, ids, 256), AT(msa_router_args, weights, 264),

    SIZE(msa_mlp_weights, 480), AT(msa_mlp_weights, gate, 0), AT(msa_mlp_weights, up, 160),
    AT(msa_mlp_weights, down, 320),

    SIZE(msa_moe_args, 232), AT(msa_moe_args, struct_size, 0), AT(msa_moe_args, flags, 4),
    AT(msa_moe_args, x, 8), AT(msa_moe_args, ids, 88), AT(msa_moe_args, weights, 96),
    AT(msa_moe_args, experts, 104), AT(msa_moe_args, shared, 112), AT(msa_moe_args, n_experts, 120),
    AT(msa_moe_args, topk, 124), AT(msa_moe_args, activation, 128),
    AT(msa_moe_args, accumulate, 144), AT(msa_moe_args, reserved, 148), AT(msa_moe_args, out, 152),

    SIZE(msa_sample_args, 80), AT(msa_sample_args, struct_size, 0), AT(msa_sample_args, flags, 4),
    AT(msa_sample_args, logits, 8), AT(msa_sample_args, recent, 16),
    AT(msa_sample_args, n_recent, 24), AT(msa_sample_args, vocab, 32),
    AT(msa_sample_args, top_k, 36), AT(msa_sample_args, temperature, 40),
    AT(msa_sample_args, top_p, 44), AT(msa_sample_args, min_p, 48),
    AT(msa_sample_args, repetition_penalty, 52), AT(msa_sample_args, frequency_penalty, 56),
    AT(msa_sample_args, presence_penalty, 60), AT(msa_sample_args, seed, 64),
    AT(msa_sample_args, draw, 72),

    SIZE(msa_embed_backward_args, 176), AT(msa_embed_backward_args, struct_size, 0),
    AT(msa_embed_backward_args, flags, 4), AT(msa_embed_backward_args, ids, 8),
    AT(msa_embed_backward_args, d_out, 16), AT(msa_embed_backward_args, d_table, 96),

    SIZE(msa_rmsnorm_backward_args, 424), AT(msa_rmsnorm_backward_args, struct_size, 0),
    AT(msa_rmsnorm_backward_args, flags, 4), AT(msa_rmsnorm_backward_args, x, 8),
    AT(msa_rmsnorm_backward_args, weight, 88), AT(msa_rmsnorm_backward_args, eps, 168),
    AT(msa_rmsnorm_backward_args, one_plus, 172), AT(msa_rmsnorm_backward_args, d_out, 176),
    AT(msa_rmsnorm_backward_args, dx, 256), AT(msa_rmsnorm_backward_args, d_weight, 336),
    AT(msa_rmsnorm_backward_args, accumulate, 416), AT(msa_rmsnorm_backward_args, reserved, 420),

    SIZE(msa_linear_backward_args, 496), AT(msa_linear_backward_args, struct_size, 0),
    AT(msa_linear_backward_args, flags, 4), AT(msa_linear_backward_args, x, 8),
    AT(msa_linear_backward_args, weight, 88), AT(msa_linear_backward_args, d_out, 248),
    AT(msa_linear_backward_args, dx, 328), AT(msa_linear_backward_args, d_weight, 408),
    AT(msa_linear_backward_args, accumulate, 488), AT(msa_linear_backward_args, reserved, 492),

    SIZE(msa_layernorm_args, 336), AT(msa_layernorm_args, struct_size, 0),
    AT(msa_layernorm_args, flags, 4), AT(msa_layernorm_args, x, 8),
    AT(msa_layernorm_args, weight, 88), AT(msa_layernorm_args, bias, 168),
    AT(msa_layernorm_args, eps, 248), AT(msa_layernorm_args, one_plus, 252),
    AT(msa_layernorm_args, out, 256),

    SIZE(msa_layernorm_backward_args, 496), AT(msa_layernorm_backward_args, struct_size, 0),
    AT(msa_layernorm_backward_args, flags, 4), AT(msa_layernorm_backward_args, x, 8),
    AT(msa_layernorm_backward_args, weight, 88), AT(msa_layernorm_backward_args, eps, 168),
    AT(msa_layernorm_backward_args, one_plus, 172), AT(msa_layernorm_backward_args, d_out, 176),
    AT(msa_layernorm_backward_args, dx, 256), AT(msa_layernorm_backward_args, d_weight, 336),
    AT(msa_layernorm_backward_args, d_bias, 416),

    SIZE(msa_token_select_args, 552), AT(msa_token_select_args, struct_size, 0),
    AT(msa_token_select_args, flags, 4), AT(msa_token_select_args, q_index, 8),
    AT(msa_token_select_args, weights, 88), AT(msa_token_select_args, kv, 168),
    AT(msa_token_select_args, cu_seqlens_q, 456), AT(msa_token_select_args, block_size, 464),
    AT(msa_token_select_args, reserved, 468), AT(msa_token_select_args, tokens, 472),

    SIZE(msa_token_attend_args, 632), AT(msa_token_attend_args, struct_size, 0),
    AT(msa_token_attend_args, flags, 4), AT(msa_token_attend_args, q, 8),
    AT(msa_token_attend_args, kv, 88), AT(msa_token_attend_args, cu_seqlens_q, 376),
    AT(msa_token_attend_args, tokens, 384), AT(msa_token_attend_args, block_size, 464),
    AT(msa_token_attend_args, scale, 468), AT(msa_token_attend_args, out, 472),
    AT(msa_token_attend_args, lse, 552),

    SIZE(msa_token_attend_backward_args, 952), AT(msa_token_attend_backward_args, struct_size, 0),
    AT(msa_token_attend_backward_args, flags, 4), AT(msa_token_attend_backward_args, q, 8),
    AT(msa_token_attend_backward_args, kv, 88),
    AT(msa_token_attend_backward_args, cu_seqlens_q, 376),
    AT(msa_token_attend_backward_args, tokens, 384), AT(msa_token_attend_backward_args, scale, 464),
    AT(msa_token_attend_backward_args, reserved, 468), AT(msa_token_attend_backward_args, out, 472),
    AT(msa_token_attend_backward_args, lse, 552), AT(msa_token_attend_backward_args, d_out, 632),
    AT(msa_token_attend_backward_args, dq, 712), AT(msa_token_attend_backward_args, dk, 792),
    AT(msa_token_attend_backward_args, dv, 872),

    SIZE(msa_token_kl_args, 1040), AT(msa_token_kl_args, struct_size, 0),
    AT(msa_token_kl_args, flags, 4), AT(msa_token_kl_args, q, 8),
    AT(msa_token_kl_args, q_index, 88), AT(msa_token_kl_args, weights, 168),
    AT(msa_token_kl_args, kv, 248), AT(msa_token_kl_args, cu_seqlens_q, 536),
    AT(msa_token_kl_args, tokens, 544), AT(msa_token_kl_args, scale, 624),
    AT(msa_token_kl_args, index_scale, 628), AT(msa_token_kl_args, weight, 632),
    AT(msa_token_kl_args, reserved, 636), AT(msa_token_kl_args, lse, 640),
    AT(msa_token_kl_args, loss, 720), AT(msa_token_kl_args, dq_index, 800),
    AT(msa_token_kl_args, d_weights, 880), AT(msa_token_kl_args, dk_index, 960),

    SIZE(msa_lightning_backward_args, 592), AT(msa_lightning_backward_args, struct_size, 0),
    AT(msa_lightning_backward_args, flags, 4), AT(msa_lightning_backward_args, q, 8),
    AT(msa_lightning_backward_args, k, 88), AT(msa_lightning_backward_args, v, 168),
    AT(msa_lightning_backward_args, cu_seqlens_q, 248),
    AT(msa_lightning_backward_args, slopes, 256), AT(msa_lightning_backward_args, n_seqs, 264),
    AT(msa_lightning_backward_args, reserved, 268), AT(msa_lightning_backward_args, d_out, 272),
    AT(msa_lightning_backward_args, dq, 352), AT(msa_lightning_backward_args, dk, 432),
    AT(msa_lightning_backward_args, dv, 512),

    SIZE(msa_sigmoid_gate_backward_args, 408), AT(msa_sigmoid_gate_backward_args, struct_size, 0),
    AT(msa_sigmoid_gate_backward_args, flags, 4), AT(msa_sigmoid_gate_backward_args, x, 8),
    AT(msa_sigmoid_gate_backward_args, gate, 88), AT(msa_sigmoid_gate_backward_args, d_out, 168),
    AT(msa_sigmoid_gate_backward_args, dx, 248), AT(msa_sigmoid_gate_backward_args, d_gate, 328),

    SIZE(msa_swiglu_backward_args, 424), AT(msa_swiglu_backward_args, struct_size, 0),
    AT(msa_swiglu_backward_args, flags, 4), AT(msa_swiglu_backward_args, gate, 8),
    AT(msa_swiglu_backward_args, up, 88), AT(msa_swiglu_backward_args, activation, 168),
    AT(msa_swiglu_backward_args, d_out, 184), AT(msa_swiglu_backward_args, d_gate, 264),
    AT(msa_swiglu_backward_args, d_up, 344),

    SIZE(msa_router_backward_args, 360), AT(msa_router_backward_args, struct_size, 0),
    AT(msa_router_backward_args, flags, 4), AT(msa_router_backward_args, x, 8),
    AT(msa_router_backward_args, weight, 88), AT(msa_router_backward_args, ids, 168),
    AT(msa_router_backward_args, scaling, 176), AT(msa_router_backward_args, topk, 180),
    AT(msa_router_backward_args, d_weights, 184), AT(msa_router_backward_args, dx, 192),
    AT(msa_router_backward_args, d_weight, 272), AT(msa_router_backward_args, accumulate, 352),
    AT(msa_router_backward_args, reserved, 356),

    SIZE(msa_mlp_gradients, 240), AT(msa_mlp_gradients, gate, 0), AT(msa_mlp_gradients, up, 80),
    AT(msa_mlp_gradients, down, 160),

    SIZE(msa_moe_backward_args, 336), AT(msa_moe_backward_args, struct_size, 0),
    AT(msa_moe_backward_args, flags, 4), AT(msa_moe_backward_args, x, 8),
    AT(msa_moe_backward_args, ids, 88), AT(msa_moe_backward_args, weights, 96),
    AT(msa_moe_backward_args, experts, 104), AT(msa_moe_backward_args, shared, 112),
    AT(msa_moe_backward_args, n_experts, 120), AT(msa_moe_backward_args, topk, 124),
    AT(msa_moe_backward_args, activation, 128), AT(msa_moe_backward_args, accumulate, 144),
    AT(msa_moe_backward_args, reserved, 148), AT(msa_moe_backward_args, d_out, 152),
    AT(msa_moe_backward_args, dx, 232), AT(msa_moe_backward_args, d_weights, 312),
    AT(msa_moe_backward_args, d_experts, 320), AT(msa_moe_backward_args, d_shared, 328),

    SIZE(msa_cross_entropy_args, 264), AT(msa_cross_entropy_args, struct_size, 0),
    AT(msa_cross_entropy_args, flags, 4), AT(msa_cross_entropy_args, logits, 8),
    AT(msa_cross_entropy_args, targets, 88), AT(msa_cross_entropy_args, weight, 96),
    AT(msa_cross_entropy_args, reserved, 100), AT(msa_cross_entropy_args, loss, 104),
    AT(msa_cross_entropy_args, d_logits, 184),

    SIZE(msa_adamw_args, 160), AT(msa_adamw_args, struct_size, 0), AT(msa_adamw_args, flags, 4),
    AT(msa_adamw_args, n, 8), AT(msa_adamw_args, parameters, 16), AT(msa_adamw_args, gradient, 24),
    AT(msa_adamw_args, m, 32), AT(msa_adamw_args, v, 40), AT(msa_adamw_args, copy, 48),
    AT(msa_adamw_args, step, 128), AT(msa_adamw_args, lr, 136), AT(msa_adamw_args, beta1, 140),
    AT(msa_adamw_args, beta2, 144), AT(msa_adamw_args, eps, 148),
    AT(msa_adamw_args, weight_decay, 152), AT(msa_adamw_args, gradient_scale, 156),

    SIZE(msa_sum_squares_args, 32), AT(msa_sum_squares_args, struct_size, 0),
    AT(msa_sum_squares_args, flags, 4), AT(msa_sum_squares_args, n, 8),
    AT(msa_sum_squares_args, x, 16), AT(msa_sum_squares_args, out, 24),

    SIZE(msa_reverse_index, 160), AT(msa_reverse_index, offsets, 0),
    AT(msa_reverse_index, queries, 80),

    SIZE(msa_reverse_index_args, 552), AT(msa_reverse_index_args, struct_size, 0),
    AT(msa_reverse_index_args, flags, 4), AT(msa_reverse_index_args, blocks, 8),
    AT(msa_reverse_index_args, kv, 88), AT(msa_reverse_index_args, cu_seqlens_q, 376),
    AT(msa_reverse_index_args, block_size, 384), AT(msa_reverse_index_args, reserved, 388),
    AT(msa_reverse_index_args, index, 392),

    SIZE(msa_attend_backward_args, 1120), AT(msa_attend_backward_args, struct_size, 0),
    AT(msa_attend_backward_args, flags, 4), AT(msa_attend_backward_args, q, 8),
    AT(msa_attend_backward_args, kv, 88), AT(msa_attend_backward_args, cu_seqlens_q, 376),
    AT(msa_attend_backward_args, blocks, 384), AT(msa_attend_backward_args, index, 464),
    AT(msa_attend_backward_args, block_size, 624), AT(msa_attend_backward_args, scale, 628),
    AT(msa_attend_backward_args, out, 632), AT(msa_attend_backward_args, lse, 712),
    AT(msa_attend_backward_args, d_out, 792), AT(msa_attend_backward_args, dq, 872),
    AT(msa_attend_backward_args, dk, 952), AT(msa_attend_backward_args, dv, 1032),
    AT(msa_attend_backward_args, accumulate, 1112), AT(msa_attend_backward_args, reserved, 1116),

    SIZE(msa_dense_attend_backward_args, 976), AT(msa_dense_attend_backward_args, struct_size, 0),
    AT(msa_dense_attend_backward_args, flags, 4), AT(msa_dense_attend_backward_args, q, 8),
    AT(msa_dense_attend_backward_args, kv, 88),
    AT(msa_dense_attend_backward_args, cu_seqlens_q, 376),
    AT(msa_dense_attend_backward_args, scale, 384),
    AT(msa_dense_attend_backward_args, reserved, 388),
    AT(msa_dense_attend_backward_args, window, 392),
    AT(msa_dense_attend_backward_args, n_sink_tokens, 400),
    AT(msa_dense_attend_backward_args, sink_logit, 408),
    AT(msa_dense_attend_backward_args, out, 416), AT(msa_dense_attend_backward_args, lse, 496),
    AT(msa_dense_attend_backward_args, d_out, 576), AT(msa_dense_attend_backward_args, dq, 656),
    AT(msa_dense_attend_backward_args, dk, 736), AT(msa_dense_attend_backward_args, dv, 816),
    AT(msa_dense_attend_backward_args, d_sink_logit, 896),

    SIZE(msa_index_kl_args, 1120), AT(msa_index_kl_args, struct_size, 0),
    AT(msa_index_kl_args, flags, 4), AT(msa_index_kl_args, q, 8),
    AT(msa_index_kl_args, q_index, 88), AT(msa_index_kl_args, kv, 168),
    AT(msa_index_kl_args, cu_seqlens_q, 456), AT(msa_index_kl_args, blocks, 464),
    AT(msa_index_kl_args, index, 544), AT(msa_index_kl_args, block_size, 704),
    AT(msa_index_kl_args, scale, 708), AT(msa_index_kl_args, index_scale, 712),
    AT(msa_index_kl_args, weight, 716), AT(msa_index_kl_args, lse, 720),
    AT(msa_index_kl_args, index_lse, 800), AT(msa_index_kl_args, loss, 880),
    AT(msa_index_kl_args, dq_index, 960), AT(msa_index_kl_args, dk_index, 1040),

    SIZE(msa_block_mass_args, 552), AT(msa_block_mass_args, struct_size, 0),
    AT(msa_block_mass_args, flags, 4), AT(msa_block_mass_args, q, 8),
    AT(msa_block_mass_args, kv, 88), AT(msa_block_mass_args, cu_seqlens_q, 376),
    AT(msa_block_mass_args, block_size, 384), AT(msa_block_mass_args, scale, 388),
    AT(msa_block_mass_args, lse, 392), AT(msa_block_mass_args, mass, 472),
};
/* clang-format on */

static void test_layouts_have_not_moved(void **state)
{
    (void)state;
    int n_moved = 0;
    for (size_t i = 0; i < sizeof(layouts) / sizeof(layouts[0]); i++) {
        if (layouts[i].actual == layouts[i].expected) continue;
        print_error("%s is %zu, was %zu\n", layouts[i].name, layouts[i].actual,
                    layouts[i].expected);
        n_moved++;
    }
    assert_int_equal(n_moved, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_layouts_have_not_moved)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
