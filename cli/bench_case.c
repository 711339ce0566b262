/* See bench_case.h. The JSON of a case is one flat object of strings, numbers and arrays of
 * numbers.
 */
#include "bench_case.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    const char *at;
    char *problem;
    size_t problem_bytes;
    int failed;
} reader;

#define COMPLAIN(r, ...)                                                                           \
    do {                                                                                           \
        if (!(r)->failed) snprintf((r)->problem, (r)->problem_bytes, __VA_ARGS__);                 \
        (r)->failed = 1;                                                                           \
    } while (0)

static void skip_space(reader *r)
{
    while (isspace((unsigned char)*r->at)) r->at++;
}

static int accept(reader *r, char c)
{
    skip_space(r);
    if (*r->at != c) return 0;
    r->at++;
    return 1;
}

static void expect(reader *r, char c)
{
    if (!accept(r, c)) COMPLAIN(r, "\"%c\" expected at \"%.12s\"", c, r->at);
}

/* A string without escapes: names and words of this format need none. */
static void read_text(reader *r, char *text, size_t text_bytes)
{
    size_t n = 0;
    text[0] = '\0';
    expect(r, '"');
    while (!r->failed && *r->at != '"') {
        if (*r->at == '\0' || *r->at == '\\' || (unsigned char)*r->at < ' ') {
            COMPLAIN(r, "a string without escapes expected at \"%.12s\"", r->at);
        } else if (n + 1 >= text_bytes) {
            COMPLAIN(r, "\"%.20s...\" is longer than %zu bytes", text, text_bytes - 1);
        } else {
            text[n++] = *r->at++;
        }
    }
    text[n] = '\0';
    if (!r->failed) r->at++;
}

static int32_t read_number(reader *r, const char *key)
{
    char *end;
    skip_space(r);
    long value = strtol(r->at, &end, 10);
    if (end == r->at || *end == '.' || *end == 'e' || *end == 'E') {
        COMPLAIN(r, "%s: a whole number expected at \"%.12s\"", key, r->at);
    } else if (value < 1 || value > INT32_MAX) {
        COMPLAIN(r, "%s = %ld, must be 1..%d", key, value, INT32_MAX);
    }
    r->at = end;
    return r->failed ? 0 : (int32_t)value;
}

static int32_t read_numbers(reader *r, const char *key, int32_t *values)
{
    int32_t n = 0;
    expect(r, '[');
    do {
        if (n == BENCH_MAX_SEQS) COMPLAIN(r, "%s: more than %d sequences", key, BENCH_MAX_SEQS);
        if (r->failed) return 0;
        values[n++] = read_number(r, key);
    } while (!r->failed && accept(r, ','));
    expect(r, ']');
    return n;
}

static msa_dtype read_dtype(reader *r)
{
    char text[16];
    static const msa_dtype known[] = {MSA_DTYPE_F32, MSA_DTYPE_BF16, MSA_DTYPE_F8_E4M3};
    read_text(r, text, sizeof(text));
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        if (strcmp(text, msa_dtype_name(known[i])) == 0) return known[i];
    }
    COMPLAIN(r, "dtype = \"%s\", must be f32, bf16 or fp8_e4m3", text);
    return MSA_DTYPE_BF16;
}

static int32_t read_phase(reader *r)
{
    char text[16];
    read_text(r, text, sizeof(text));
    if (strcmp(text, "prefill") != 0 && strcmp(text, "decode") != 0) {
        COMPLAIN(r, "phase = \"%s\", must be prefill or decode", text);
    }
    return strcmp(text, "prefill") == 0;
}

/* Every key of the format is required, so the bits of those seen must be all ones at the end. */
static const char *const keys[] = {"case",      "phase",      "q_lens",   "kv_lens",
                                   "n_q_heads", "n_kv_heads", "head_dim", "index_dim",
                                   "block",     "topk",       "dtype"};
#define N_KEYS (sizeof(keys) / sizeof(keys[0]))

static void read_value(reader *r, size_t key, bench_case *c, int32_t *n_q, int32_t *n_kv)
{
    int32_t *const numbers[] = {&c->n_q_heads, &c->n_kv_heads, &c->head_dim,
                                &c->index_dim, &c->block_size, &c->topk};
    switch (key) {
    case 0:
        read_text(r, c->name, sizeof(c->name));
        break;
    case 1:
        c->is_prefill = read_phase(r);
        break;
    case 2:
        *n_q = read_numbers(r, keys[key], c->q_lens);
        break;
    case 3:
        *n_kv = read_numbers(r, keys[key], c->kv_lens);
        break;
    case 10:
        c->dtype = read_dtype(r);
        break;
    default:
        *numbers[key - 4] = read_number(r, keys[key]);
        break;
    }
}

static void check_lengths(reader *r, const bench_case *c, int32_t n_q, int32_t n_kv)
{
    if (r->failed) return;
    if (n_q != n_kv) COMPLAIN(r, "q_lens has %d numbers and kv_lens %d", n_q, n_kv);
    for (int32_t s = 0; s < n_q && !r->failed; s++) {
        if (c->q_lens[s] > c->kv_lens[s]) {
            COMPLAIN(r, "q_lens[%d] = %d, must be at most kv_lens[%d] = %d", s, c->q_lens[s], s,
                     c->kv_lens[s]);
        }
    }
    for (const char *p = c->name; *p; p++) {
        if (*p == ',') COMPLAIN(r, "case = \"%s\", must not contain a comma", c->name);
    }
}

const char *bench_case_parse(bench_case *c, const char *line, char *problem, size_t problem_bytes)
{
    reader r = {line, problem, problem_bytes, 0};
    uint32_t seen = 0;
    int32_t n_q = 0, n_kv = 0;
    memset(c, 0, sizeof(*c));
    expect(&r, '{');
    do {
        char key[32];
        size_t i = 0;
        if (r.failed) return problem;
        read_text(&r, key, sizeof(key));
        expect(&r, ':');
        while (i < N_KEYS && strcmp(key, keys[i]) != 0) i++;
        if (i == N_KEYS) COMPLAIN(&r, "unknown key \"%s\"", key);
        if (i < N_KEYS && seen >> i & 1) COMPLAIN(&r, "key \"%s\" is there twice", key);
        if (r.failed) return problem;
        seen |= 1u << i;
        read_value(&r, i, c, &n_q, &n_kv);
    } while (accept(&r, ','));
    expect(&r, '}');
    skip_space(&r);
    if (*r.at) COMPLAIN(&r, "text after the object: \"%.12s\"", r.at);
    for (size_t i = 0; i < N_KEYS; i++) {
        if (!(seen >> i & 1)) COMPLAIN(&r, "key \"%s\" is missing", keys[i]);
    }
    check_lengths(&r, c, n_q, n_kv);
    c->n_seqs = n_q;
    return r.failed ? problem : NULL;
}

/* ---- the default sweep: M3's heads, bf16 ---------------------------------------------------- */

typedef struct {
    int32_t n_seqs, q_len, kv_len;
} sweep_row;

static const sweep_row sweep[] = {
    {1, 1, 1 << 10},   {1, 1, 1 << 12},       {1, 1, 1 << 14},   {1, 1, 1 << 15},
    {1, 1, 1 << 16},   {1, 1, 1 << 17},       {1, 1, 1 << 18},   {1, 1, 1 << 19},
    {1, 1, 1 << 20},   {8, 1, 1 << 15},       {1, 2048, 2048},   {1, 512, 1 << 12},
    {1, 512, 1 << 13}, {1, 512, 1 << 14},     {1, 512, 1 << 15}, {1, 512, 1 << 16},
    {1, 512, 1 << 17}, {1, 1 << 15, 1 << 15},
};

int bench_case_default(int32_t i, int64_t max_context, bench_case *c)
{
    for (size_t row = 0; row < sizeof(sweep) / sizeof(sweep[0]); row++) {
        const sweep_row *s = &sweep[row];
        if (s->kv_len > max_context || i-- > 0) continue;
        memset(c, 0, sizeof(*c));
        c->is_prefill = s->q_len > 1;
        c->n_seqs = s->n_seqs;
        for (int32_t k = 0; k < s->n_seqs; k++) {
            c->q_lens[k] = s->q_len;
            c->kv_lens[k] = s->kv_len;
        }
        c->n_q_heads = 64;
        c->n_kv_heads = 4;
        c->head_dim = c->index_dim = c->block_size = 128;
        c->topk = 16;
        c->dtype = MSA_DTYPE_BF16;
        const char *kind = s->q_len == 1 ? "decode" : s->q_len == s->kv_len ? "prefill" : "chunk";
        snprintf(c->name, sizeof(c->name), "%s-%dk%s%.0d", kind, s->kv_len >> 10,
                 s->n_seqs > 1 ? "-batch" : "", s->n_seqs > 1 ? s->n_seqs : 0);
        return 1;
    }
    return 0;
}

int64_t bench_case_tokens(const bench_case *c)
{
    int64_t n = 0;
    for (int32_t s = 0; s < c->n_seqs; s++) n += c->q_lens[s];
    return n;
}

int64_t bench_case_keys(const bench_case *c)
{
    int64_t n = 0;
    for (int32_t s = 0; s < c->n_seqs; s++) n += c->kv_lens[s];
    return n;
}

double bench_case_pairs(const bench_case *c)
{
    double n = 0;
    for (int32_t s = 0; s < c->n_seqs; s++) {
        double q = c->q_lens[s], first = c->kv_lens[s] - c->q_lens[s] + 1.0;
        n += q * (first + c->kv_lens[s]) / 2;
    }
    return n;
}
