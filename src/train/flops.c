/* Counting operations; see flops.h. */
#include "train/flops.h"

/* Matrix products by parameter: forward 2 per weight and token, both gradients 4, the weight's
 * alone 2. The index branch gives its input no gradient. */
static double matrix_flops(const msa__parameters *p, const msa__walk_mode *mode)
{
    const msa__config *c = p->config;
    double sum = 0;
    for (int32_t i = 0; i < p->n_list; i++) {
        const msa__parameter *one = &p->list[i];
        double n = (double)one->n;
        int32_t kind = one->spec.kind, head = kind == MSA__KIND_HEAD;
        if (kind == MSA__KIND_EMBEDDING) head = c->tie_embeddings;
        if (one->spec.columns == 0 || (kind == MSA__KIND_EMBEDDING && !head)) continue;
        if (one->spec.expert >= 0) n *= (double)c->n_experts_per_token / c->n_experts;
        if (one->group == MSA__GROUP_INDEX_DECAYED) {
            sum += mode->phase == MSA__PHASE_DENSE ? 0 : 4 * n;
        } else if (mode->freeze_backbone) {
            sum += head ? 0 : 2 * n;
        } else {
            sum += 6 * n;
        }
    }
    return sum;
}

/* Keys that the queries of a sequence see: full, through a window of tokens, or in blocks of which
 * the local one is partly visible, (M10). */
static double visible_pairs(int64_t length, int64_t window, int64_t topk, int64_t block_size)
{
    double n = (double)length, pairs = n * (n + 1) / 2;
    if (window > 0 && window < length) {
        double hidden = (double)(length - window);
        return pairs - hidden * (hidden + 1) / 2;
    }
    if (topk == 0 || topk * block_size >= length) return pairs;
    pairs = 0;
    for (int64_t i = 0; i < length; i++) {
        int64_t local = i / block_size, kept = topk < local + 1 ? topk : local + 1;
        pairs += (double)((kept - 1) * block_size + i % block_size + 1);
    }
    return pairs;
}

/* Gates of the queries of a sequence, (B2): complete blocks before their own. */
static double earlier_blocks(int64_t length, int64_t block_size)
{
    double n_full = (double)(length / block_size), rest = (double)(length % block_size);
    return n_full * (n_full - 1) / 2 * (double)block_size + n_full * rest;
}

/* Forward (M24), and twice that for the gradients. Scores that a backward pass or the index loss
 * makes again are not counted, as in the usual figure of MFU. */
static double attention_flops(const msa__config *c, const msa__walk_mode *mode, int32_t layer,
                              int64_t length)
{
    msa__attention_kind kind = c->layers[layer].attention;
    double q = (double)c->n_q_heads * c->head_dim;
    if (kind == MSA__ATTENTION_LIGHTNING) { /* (L20), (L21); (L24) has four more such products */
        return (mode->freeze_backbone ? 4 : 12) * q * c->head_dim * (double)length;
    }
    int64_t window = kind == MSA__ATTENTION_SWA ? c->window : 0, topk = 0;
    int32_t index = msa__attention_has_index(kind) && mode->phase != MSA__PHASE_DENSE;
    int32_t sparse = index && mode->phase == MSA__PHASE_SPARSE, dsa = kind == MSA__ATTENTION_DSA;
    int64_t block_size = c->block_size, moba = msa__attention_is_moba(c->layers[layer].attention);
    if (kind == MSA__ATTENTION_WINDOW_CONTROL) topk = c->window_blocks;
    if (sparse && dsa) window = c->dsa_topk; /* as many keys as through a window */
    if (sparse && !dsa) topk = c->topk_blocks;
    if (moba) topk = c->moba_topk, block_size *= c->moba_pages;
    double index_q = (double)(dsa ? c->dsa_heads : c->n_kv_heads) * c->index_dim;
    double pairs = visible_pairs(length, window, topk, block_size);
    double sum = (mode->freeze_backbone ? 4 : 12) * q * pairs;
    if (moba) return sum + 2 * q * earlier_blocks(length, block_size);
    if (!index) return sum;
    return sum + index_q * (2 * visible_pairs(length, 0, 0, c->block_size) + 4 * pairs);
}

double msa__flops(const msa__parameters *parameters, const msa__walk_mode *mode,
                  const msa__walk_batch *batch)
{
    const msa__config *c = parameters->config;
    double sum = matrix_flops(parameters, mode) * batch->n_tokens;
    for (int32_t i = 0; i < batch->n_seqs; i++) {
        int64_t length = batch->cu_seqlens[i + 1] - batch->cu_seqlens[i];
        for (int32_t layer = 0; layer < c->n_layers; layer++) {
            sum += attention_flops(c, mode, layer, length);
        }
    }
    return sum;
}
