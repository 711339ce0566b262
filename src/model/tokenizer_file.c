/* tokenizer.json, read and checked.
 *
 * Everything that decides which ids a text gets is either implemented or refused by name. Left
 * aside are parts that only act outside of text to ids: truncation and padding (of batches),
 * post_processor (adds special tokens, which this library leaves to the chat prompt), and
 * unk_token, fuse_unk and byte_fallback, which have no effect because every byte must be a token.
 */
#include "model/json_optional.h"
#include "model/tokenizer.h"

/* The pattern of a ByteLevel pre-tokenizer that cuts by itself. */
#define GPT2_PATTERN                                                                               \
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"

static int32_t has_type(const msa__json *part, const char *name)
{
    const msa__json *type = msa__json_get(part, "type");
    return type && msa__json_equals(type, name);
}

typedef msa_status (*part_fn)(msa_tokenizer *t, const msa__json *part);

/* Call fn for a part, or for each part of a (nested) Sequence, whose items are under `key`. */
static msa_status each_part(msa_tokenizer *t, const msa__json *part, const char *key, part_fn fn)
{
    const msa__json *items;
    if (!has_type(part, "Sequence")) return fn(t, part);
    MSA_TRY(need_typed(part, key, MSA__JSON_ARRAY, &items));
    MSA__JSON_EACH(item, items) MSA_TRY(each_part(t, item, key, fn));
    return MSA_OK;
}

static msa_status refuse_type(const msa__json *part, const char *what)
{
    const msa__json *type;
    MSA_TRY(need_typed(part, "type", MSA__JSON_STRING, &type));
    return msa__json_fail(type, MSA_EUNSUPPORTED, "is not supported as a %s", what);
}

static msa_status read_normalizer(msa_tokenizer *t, const msa__json *part)
{
    if (!has_type(part, "NFC")) return refuse_type(part, "normalizer");
    t->nfc = 1;
    return MSA_OK;
}

static msa_status check_decoder(msa_tokenizer *t, const msa__json *part)
{
    (void)t;
    if (has_type(part, "ByteLevel")) return MSA_OK;
    return refuse_type(part, "decoder");
}

static msa_status read_split(msa_tokenizer *t, const msa__json *part)
{
    const msa__json *behavior, *pattern, *text;
    int32_t invert;
    MSA_TRY(msa__json_need(part, "behavior", &behavior));
    if (!msa__json_equals(behavior, "Isolated")) {
        return msa__json_fail(behavior, MSA_EUNSUPPORTED, "must be \"Isolated\"");
    }
    MSA_TRY(optional_bool(part, "invert", 0, &invert));
    if (invert) {
        return msa__json_fail(part, MSA_EUNSUPPORTED, "Split with invert is not supported");
    }
    MSA_TRY(need_typed(part, "pattern", MSA__JSON_OBJECT, &pattern));
    int32_t literal = msa__json_get(pattern, "String") != NULL;
    MSA_TRY(need_typed(pattern, literal ? "String" : "Regex", MSA__JSON_STRING, &text));
    msa__pre_step *step = &t->steps[t->n_steps++];
    return msa__pattern_create(&step->pattern, text->text, text->text_bytes, literal);
}

static msa_status read_byte_level(msa_tokenizer *t, const msa__json *part)
{
    int32_t use_regex;
    msa__pre_step *step = &t->steps[t->n_steps++];
    MSA_TRY(optional_bool(part, "add_prefix_space", 1, &step->prefix_space));
    MSA_TRY(optional_bool(part, "use_regex", 1, &use_regex));
    t->byte_level = 1;
    if (!use_regex) return MSA_OK;
    return msa__pattern_create(&step->pattern, GPT2_PATTERN, sizeof(GPT2_PATTERN) - 1, 0);
}

static msa_status read_pre_tokenizer(msa_tokenizer *t, const msa__json *part)
{
    if (t->byte_level) {
        return msa__json_fail(part, MSA_EUNSUPPORTED, "behind ByteLevel is not supported");
    }
    if (t->n_steps == MSA__MAX_PRE_STEPS) {
        return msa__json_fail(part, MSA_EUNSUPPORTED, "must be among the first %d pre_tokenizers",
                              MSA__MAX_PRE_STEPS);
    }
    if (has_type(part, "Split")) return read_split(t, part);
    if (has_type(part, "ByteLevel")) return read_byte_level(t, part);
    return refuse_type(part, "pre_tokenizer");
}

msa_status msa__tokenizer_fill(msa_tokenizer *t, const msa__json *root)
{
    const msa__json *model, *type, *part;
    MSA_TRY(need_typed(root, "model", MSA__JSON_OBJECT, &model));
    type = msa__json_get(model, "type"); /* files of 2019 have none */
    if (type && !msa__json_equals(type, "BPE")) {
        return msa__json_fail(type, MSA_EUNSUPPORTED, "must be \"BPE\"");
    }
    part = msa__json_get(root, "normalizer");
    if (!is_null(part)) MSA_TRY(each_part(t, part, "normalizers", read_normalizer));
    MSA_TRY(msa__json_need(root, "pre_tokenizer", &part));
    if (!is_null(part)) MSA_TRY(each_part(t, part, "pretokenizers", read_pre_tokenizer));
    if (!t->byte_level) {
        return msa__json_fail(part, MSA_EUNSUPPORTED, "must end in ByteLevel");
    }
    MSA_TRY(msa__json_need(root, "decoder", &part));
    MSA_TRY(each_part(t, part, "decoders", check_decoder));
    part = msa__json_get(root, "added_tokens");
    if (is_null(part)) return msa__tokenizer_read_model(t, model, NULL);
    MSA_TRY(msa__json_type_is(part, MSA__JSON_ARRAY));
    return msa__tokenizer_read_model(t, model, part);
}
