/* Writing tokenizer.json; see tokenizer_writer.h. */
#include "model/tokenizer_writer.h"

#include "model/byte_alphabet.h"

#include <stdio.h>
#include <string.h>

/* Those that carry no "special" flag: they must reach the parsers of reasoning and tool calls. */
#define FIRST_PLAIN 50
#define LAST_PLAIN  53
#define FIRST_MARK  58

static const char *const added_tokens[] = {
    "]!p~[",
    "<fim_prefix>",
    "<fim_middle>",
    "<fim_suffix>",
    "<fim_pad>",
    "<reponame>",
    "<filename>",
    "<gh_stars>",
    "<issue_start>",
    "<issue_comment>",
    "<issue_closed>",
    "<jupyter_start>",
    "<jupyter_text>",
    "<jupyter_code>",
    "<jupyter_output>",
    "<empty_output>",
    "<commit_before>",
    "<commit_msg>",
    "<commit_after>",
    "]~b]",
    "[e~[",
    "]!d~[",
    "<function_call>",
    "<code_interpreter>",
    "]<]speech[>[",
    "]<]image[>[",
    "]<]video[>[",
    "]<]start of speech[>[",
    "]<]end of speech[>[",
    "]<]start of image[>[",
    "]<]end of image[>[",
    "]<]start of video[>[",
    "]<]end of video[>[",
    "]<]vision pad[>[",
    "]~!b[",
    "<jupyter_error>",
    "<add_file>",
    "<delete_file>",
    "<rename_file>",
    "<edit_file>",
    "<commit_message>",
    "<empty_source_file>",
    "<repo_struct>",
    "<code_context>",
    "<file_content>",
    "<source_files>",
    "<pr_start>",
    "<review_comment>",
    "<filepath>",
    "<file_sep>",
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "]<]frame[>[",
    "]<]start of frame[>[",
    "]<]end of frame[>[",
    "<|content_altered_placeholder|>",
    "]<]minimax[>[",
    "<mm:think>",
    "</mm:think>",
};

#define N_ADDED ((int32_t)(sizeof(added_tokens) / sizeof(added_tokens[0])))

/* What chat prompts and documents need of them: padding, the three of a turn, and the marks. */
static const int32_t chat_tokens[] = {0, 19, 20, 34, 58, 59, 60};

#define N_CHAT ((int32_t)(sizeof(chat_tokens) / sizeof(chat_tokens[0])))

const char msa__m3_pattern[] = "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*"
                               "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
                               "|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+"
                               "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
                               "|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+"
                               "|\\s+(?!\\S)|\\s+";

int32_t msa__n_added(msa__added added)
{
    return added == MSA__ADDED_M3 ? N_ADDED : N_CHAT;
}

/* A JSON string of printable characters. */
static void add_string(msa__text *text, const char *string)
{
    msa__text_puts(text, "\"");
    for (; *string; string++) {
        if (*string == '"' || *string == '\\') msa__text_puts(text, "\\");
        msa__text_add(text, string, 1);
    }
    msa__text_puts(text, "\"");
}

/* A token in the byte alphabet, as a JSON string. */
static void add_spelling(msa__text *text, const msa__token_bytes *token)
{
    char letter[8];
    msa__text_puts(text, "\"");
    for (uint32_t i = 0; i < token->n; i++) {
        size_t n = msa__byte_to_alphabet((unsigned char)token->bytes[i], letter);
        if (letter[0] == '"' || letter[0] == '\\') msa__text_puts(text, "\\");
        msa__text_add(text, letter, n);
    }
    msa__text_puts(text, "\"");
}

static void add_added_tokens(msa__text *text, const msa__tokenizer_parts *parts)
{
    char line[256];
    int32_t n = msa__n_added(parts->added);
    msa__text_puts(text, "  \"added_tokens\": [\n");
    for (int32_t i = 0; i < n; i++) {
        int32_t which = parts->added == MSA__ADDED_M3 ? i : chat_tokens[i];
        int32_t special = !(which >= FIRST_PLAIN && which <= LAST_PLAIN) && which < FIRST_MARK;
        (void)snprintf(line, sizeof(line),
                       "    {\"id\": %d, \"content\": \"%s\", \"single_word\": false, \"lstrip\": "
                       "false, \"rstrip\": false, \"normalized\": false, \"special\": %s}%s\n",
                       parts->n_tokens + i, added_tokens[which], special ? "true" : "false",
                       i + 1 < n ? "," : "");
        msa__text_puts(text, line);
    }
    msa__text_puts(text, "  ],\n");
}

static void add_model(msa__text *text, const msa__tokenizer_parts *parts)
{
    char line[32];
    msa__text_puts(text, "  \"model\": {\n    \"type\": \"BPE\",\n    \"dropout\": null,\n"
                         "    \"unk_token\": null,\n    \"continuing_subword_prefix\": null,\n"
                         "    \"end_of_word_suffix\": null,\n    \"fuse_unk\": false,\n"
                         "    \"byte_fallback\": false,\n    \"ignore_merges\": false,\n"
                         "    \"vocab\": {\n");
    for (int32_t id = 0; id < parts->n_tokens; id++) {
        add_spelling(text, &parts->tokens[id]);
        (void)snprintf(line, sizeof(line), ": %d%s\n", id, id + 1 < parts->n_tokens ? "," : "");
        msa__text_puts(text, line);
    }
    msa__text_puts(text, "    },\n    \"merges\": [\n");
    for (int32_t i = 0; i < parts->n_merges; i++) {
        msa__text_puts(text, "[");
        add_spelling(text, &parts->tokens[parts->merges[i].left]);
        msa__text_puts(text, ", ");
        add_spelling(text, &parts->tokens[parts->merges[i].right]);
        msa__text_puts(text, i + 1 < parts->n_merges ? "],\n" : "]\n");
    }
    msa__text_puts(text, "    ]\n  }\n");
}

void msa__write_tokenizer(msa__text *text, const msa__tokenizer_parts *parts)
{
    msa__text_puts(text, "{\n  \"version\": \"1.0\",\n  \"truncation\": null,\n"
                         "  \"padding\": null,\n");
    add_added_tokens(text, parts);
    msa__text_puts(text, "  \"normalizer\": null,\n"
                         "  \"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": [\n"
                         "    {\"type\": \"Split\", \"pattern\": {\"Regex\": ");
    add_string(text, msa__m3_pattern);
    msa__text_puts(text, "}, \"behavior\": \"Isolated\", \"invert\": false},\n"
                         "    {\"type\": \"ByteLevel\", \"add_prefix_space\": false, "
                         "\"trim_offsets\": true, \"use_regex\": false}\n  ]},\n"
                         "  \"post_processor\": null,\n"
                         "  \"decoder\": {\"type\": \"ByteLevel\", \"add_prefix_space\": true, "
                         "\"trim_offsets\": true, \"use_regex\": true},\n");
    add_model(text, parts);
    msa__text_puts(text, "}\n");
}

void msa__write_tokenizer_config(msa__text *text)
{
    msa__text_puts(text, "{\n  \"tokenizer_class\": \"PreTrainedTokenizerFast\",\n"
                         "  \"bos_token\": \"]~b]\",\n  \"eos_token\": \"[e~[\",\n"
                         "  \"pad_token\": \"]!p~[\",\n  \"add_bos_token\": false,\n"
                         "  \"add_eos_token\": false,\n"
                         "  \"clean_up_tokenization_spaces\": false,\n"
                         "  \"model_max_length\": 1048576\n}\n");
}
