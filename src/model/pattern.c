/* Matching with PCRE2; see pattern.h. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "model/pattern.h"

#include "base/alloc.h"
#include "base/error.h"
#include "model/pattern_syntax.h"
#include "model/utf8.h"

#include <pcre2.h>

/* A pattern that cuts text works in a few steps per byte. More than this is a pattern that would
 * never come to an end, and gives an error instead. */
#define STEPS_PER_BYTE 16
#define STEPS_AT_LEAST 100000
#define HEAP_KIB       (256 * 1024)

struct msa__pattern {
    pcre2_code *code;
};

struct msa__matcher {
    pcre2_match_context *context;
    pcre2_match_data *data;
};

static void *pcre2_alloc(size_t bytes, void *user)
{
    (void)user;
    return msa__default_allocator.alloc(msa__default_allocator.user, bytes, 16);
}

static void pcre2_release(void *ptr, void *user)
{
    (void)user;
    if (ptr) msa__default_allocator.free(msa__default_allocator.user, ptr, 0);
}

static msa_status compile(pcre2_code **code, pcre2_general_context *general, const msa__text *text,
                          int32_t literal)
{
    pcre2_compile_context *context = pcre2_compile_context_create(general);
    if (!context) return MSA_FAIL(MSA_ENOMEM, "tokenizer: no memory for a pattern");
    (void)pcre2_set_newline(context, PCRE2_NEWLINE_LF);
    int error;
    PCRE2_SIZE where;
    uint32_t options = PCRE2_UTF | PCRE2_NO_UTF_CHECK | (literal ? PCRE2_LITERAL : PCRE2_UCP);
    *code = pcre2_compile((PCRE2_SPTR)(text->n ? text->bytes : ""), text->n, options, &error,
                          &where, context);
    pcre2_compile_context_free(context);
    if (*code) {
        /* Without JIT (refused by the system, or by the pattern) matching is slower, not different.
         */
        (void)pcre2_jit_compile(*code, PCRE2_JIT_COMPLETE);
        return MSA_OK;
    }
    if (error == PCRE2_ERROR_HEAP_FAILED || error == PCRE2_ERROR_NOMEMORY) {
        return MSA_FAIL(MSA_ENOMEM, "tokenizer: no memory for a pattern");
    }
    char message[160];
    (void)pcre2_get_error_message(error, (PCRE2_UCHAR *)message, sizeof(message));
    return MSA_FAIL(MSA_EUNSUPPORTED, "tokenizer: pre_tokenizer pattern, %s (at \"%.40s\")",
                    message, text->bytes + where);
}

msa_status msa__pattern_create(msa__pattern **out, const char *pattern, size_t n, int32_t literal)
{
    *out = NULL;
    msa__text text = {0};
    msa_status status = MSA_OK;
    pcre2_general_context *general = NULL;
    msa__pattern *fresh = pcre2_alloc(sizeof(*fresh), NULL);
    if (fresh) fresh->code = NULL;
    general = pcre2_general_context_create(pcre2_alloc, pcre2_release, NULL);
    if (!fresh || !general) {
        status = MSA_FAIL(MSA_ENOMEM, "tokenizer: no memory for a pattern");
        goto done;
    }
    if (literal)
        msa__text_add(&text, pattern, n);
    else
        status = msa__pattern_translate(&text, pattern, n);
    if (status == MSA_OK) {
        size_t bytes = text.n;
        msa__text_add(&text, "", 1); /* error messages quote the pattern */
        text.n = bytes;
        status = text.status;
    }
    if (status == MSA_OK) status = compile(&fresh->code, general, &text, literal);
    if (status == MSA_OK) *out = fresh;
done:
    if (status != MSA_OK) msa__pattern_destroy(fresh);
    if (general) pcre2_general_context_free(general);
    msa__text_free(&text);
    return status;
}

void msa__pattern_destroy(msa__pattern *pattern)
{
    if (!pattern) return;
    pcre2_code_free(pattern->code);
    pcre2_release(pattern, NULL);
}

msa_status msa__matcher_create(msa__matcher **out)
{
    *out = NULL;
    msa__matcher *fresh = pcre2_alloc(sizeof(*fresh), NULL);
    pcre2_general_context *general = pcre2_general_context_create(pcre2_alloc, pcre2_release, NULL);
    if (fresh) {
        fresh->context = general ? pcre2_match_context_create(general) : NULL;
        fresh->data = general ? pcre2_match_data_create(1, general) : NULL;
    }
    if (general) pcre2_general_context_free(general);
    if (!fresh || !fresh->context || !fresh->data) {
        msa__matcher_destroy(fresh);
        return MSA_FAIL(MSA_ENOMEM, "tokenizer: no memory to match a pattern");
    }
    (void)pcre2_set_heap_limit(fresh->context, HEAP_KIB);
    *out = fresh;
    return MSA_OK;
}

void msa__matcher_destroy(msa__matcher *matcher)
{
    if (!matcher) return;
    if (matcher->data) pcre2_match_data_free(matcher->data);
    if (matcher->context) pcre2_match_context_free(matcher->context);
    pcre2_release(matcher, NULL);
}

static int match_at(const msa__pattern *pattern, msa__matcher *matcher, const char *text, size_t n,
                    size_t from)
{
    int rc = pcre2_match(pattern->code, (PCRE2_SPTR)text, n, from, PCRE2_NO_UTF_CHECK,
                         matcher->data, matcher->context);
    if (rc != PCRE2_ERROR_JIT_STACKLIMIT) return rc;
    return pcre2_match(pattern->code, (PCRE2_SPTR)text, n, from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT,
                       matcher->data, matcher->context);
}

msa_status msa__pattern_next(const msa__pattern *pattern, msa__matcher *matcher, const char *text,
                             size_t n, msa__matches *matches)
{
    size_t limit = n > UINT32_MAX / 2 / STEPS_PER_BYTE ? UINT32_MAX / 2 : n * STEPS_PER_BYTE;
    (void)pcre2_set_match_limit(matcher->context, (uint32_t)(limit + STEPS_AT_LEAST));
    while (matches->from <= n) {
        int rc = match_at(pattern, matcher, text, n, matches->from);
        if (rc == PCRE2_ERROR_NOMATCH) break;
        if (rc == PCRE2_ERROR_NOMEMORY) {
            return MSA_FAIL(MSA_ENOMEM, "tokenizer: no memory to match a pattern");
        }
        if (rc < 0) {
            return MSA_FAIL(MSA_EUNSUPPORTED,
                            "tokenizer: pre_tokenizer pattern needs too many steps at byte %zu of "
                            "%zu (PCRE2 error %d)",
                            matches->from, n, rc);
        }
        const PCRE2_SIZE *bounds = pcre2_get_ovector_pointer(matcher->data);
        size_t begin = bounds[0], end = bounds[1];
        if (begin == end && matches->n_matches && end == matches->end) {
            size_t bytes = 1;
            if (matches->from < n) (void)msa__utf8_decode(text + matches->from, &bytes);
            matches->from += bytes;
            continue;
        }
        matches->begin = begin;
        matches->from = matches->end = end;
        matches->n_matches = 1;
        return MSA_OK;
    }
    matches->done = 1;
    return MSA_OK;
}
