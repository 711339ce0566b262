/* msa: MiniMax Sparse Attention in C. This header includes every public one.
 *
 * status.h     result codes and the last error message
 * tensor.h     dtypes and array views
 * context.h    backend, threads, allocator
 * memory.h     memory of the context's device
 * graph.h      recording a step and launching it again
 * attention.h  select, attend, dense attend, merge, cache append
 * cache.h      the paged K, V and index-K pool
 * layer.h      norms, RoPE, linear, MoE, sampling
 * gradient.h   gradients of all of these, the index branch's loss, AdamW
 * safetensors.h named arrays in files
 * model.h      model folders, tokenizer, chat prompts
 * engine.h     engine and sessions
 * convert.h    an index branch for dense models, MXFP8 weights
 * train.h      training, and what a selection captures
 * tasks.h      long-text tasks made from a seed
 * data.h       tokenizer training, token shards
 * eval.h       scores on them, perplexity by position
 *
 * The first nine are libmsa (needs libc and libm only); the others are libmsa_engine.
 *
 * Sparse attention of one decode step:
 *
 *     msa_context_args ca;  msa_context_args_init(&ca);
 *     msa_context *ctx;     MSA_TRY(msa_context_create(&ctx, &ca));
 *     msa_select_args s;    msa_select_args_init(&s);
 *     s.q_index = ...; s.kv = view; s.cu_seqlens_q = cu; s.blocks = rows;
 *     msa_attend_args a;    msa_attend_args_init(&a);
 *     a.q = ...; a.kv = view; a.cu_seqlens_q = cu; a.blocks = rows; a.out = ...;
 *     msa_select_attend_args both;  msa_select_attend_args_init(&both);
 *     both.select = &s; both.attend = &a; (or msa_select, then msa_attend)
 *     msa_plan plan;        msa_plan_init(&plan);
 *     msa_select_attend_plan(ctx, &both, &plan);  ws = aligned_alloc(64, plan.workspace_bytes);
 *     msa_select_attend(ctx, &plan, &both, ws, plan.workspace_bytes);
 */
#ifndef MSA_MSA_H
#define MSA_MSA_H

#include "msa/attention.h"
#include "msa/baselines.h"
#include "msa/cache.h"
#include "msa/context.h"
#include "msa/convert.h"
#include "msa/data.h"
#include "msa/engine.h"
#include "msa/eval.h"
#include "msa/gradient.h"
#include "msa/graph.h"
#include "msa/layer.h"
#include "msa/memory.h"
#include "msa/model.h"
#include "msa/safetensors.h"
#include "msa/status.h"
#include "msa/tasks.h"
#include "msa/tensor.h"
#include "msa/train.h"

#endif
