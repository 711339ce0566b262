/* See corpus.h. */
#define _GNU_SOURCE
#include "data/corpus.h"

#include "harness/cmocka_all.h"
#include "model/make_tokenizer.h"

#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static void write_text(const corpus *c, const char *name, void (*make)(msa__text *))
{
    msa__text text = {0};
    make(&text);
    corpus_write(c, name, text.bytes, text.n);
    msa__text_free(&text);
}

corpus corpus_create(void)
{
    corpus c = {"/tmp/msa-data-XXXXXX"};
    assert_non_null(mkdtemp(c.dir));
    write_text(&c, "tokenizer/tokenizer.json", msa__made_tokenizer);
    write_text(&c, "tokenizer/tokenizer_config.json", msa__made_tokenizer_config);
    return c;
}

static int remove_one(const char *path, const struct stat *info, int kind, struct FTW *where)
{
    (void)info;
    (void)kind;
    (void)where;
    return remove(path);
}

void corpus_remove(const corpus *c)
{
    assert_int_equal(nftw(c->dir, remove_one, 8, FTW_DEPTH | FTW_PHYS), 0);
}

const char *corpus_path(const corpus *c, const char *name)
{
    static char path[512];
    snprintf(path, sizeof(path), "%s/%s", c->dir, name);
    return path;
}

void corpus_write(const corpus *c, const char *name, const void *bytes, size_t n)
{
    char path[512];
    snprintf(path, sizeof(path), "%s", corpus_path(c, name));
    for (char *slash = strchr(path + strlen(c->dir) + 1, '/'); slash;
         slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        (void)mkdir(path, 0777);
        *slash = '/';
    }
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, n, file), n);
    assert_int_equal(fclose(file), 0);
}

msa_status corpus_open(const corpus *c, msa__dataset **out, const char *sources, uint64_t seed)
{
    msa__text json = {0};
    msa__text_puts(&json, "{\"tokenizer\": \"");
    msa__text_puts(&json, c->dir);
    msa__text_puts(&json, "/tokenizer\", \"sources\": ");
    for (const char *s = sources; *s; s++) {
        if (*s == '@')
            msa__text_puts(&json, c->dir);
        else
            msa__text_add(&json, s, 1);
    }
    msa__text_puts(&json, "}");
    const msa__json *root;
    EXPECT_OK(msa__json_parse(&root, NULL, "test", json.bytes, json.n));
    char cache[512];
    snprintf(cache, sizeof(cache), "%s", corpus_path(c, "cache"));
    msa_status status = msa__dataset_open(out, root, cache, seed, NULL, NULL);
    msa__json_free(root);
    msa__text_free(&json);
    return status;
}

msa__batch batch_create(int64_t n_tokens)
{
    msa__batch batch = {0};
    int32_t **arrays[] = {&batch.tokens, &batch.targets, &batch.positions, &batch.cu_seqlens};
    for (int i = 0; i < 4; i++) {
        *arrays[i] = malloc((size_t)(n_tokens + 1) * sizeof(int32_t));
        assert_non_null(*arrays[i]);
    }
    return batch;
}

void batch_free(msa__batch *batch)
{
    free(batch->tokens);
    free(batch->targets);
    free(batch->positions);
    free(batch->cu_seqlens);
}
