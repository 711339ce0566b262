/* tokenizer.json of made models; see make_tokenizer.h.
 *
 * Byte-level BPE without merges: token b is byte b, spelled in the byte alphabet (printable Latin-1
 * as itself, the 68 others in order from U+0100). The pre-tokenizer pattern and the added tokens,
 * in their order, are M3's, so chat prompts and parsers work on made models.
 */
#include "model/make_tokenizer.h"

#include <stdio.h>

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

/* As it stands in the file: backslashes doubled for JSON. */
static const char pattern[] =
    "[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?[\\\\p{Lu}\\\\p{Lt}\\\\p{Lm}\\\\p{Lo}\\\\p{M}]*"
    "[\\\\p{Ll}\\\\p{Lm}\\\\p{Lo}\\\\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    "|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?[\\\\p{Lu}\\\\p{Lt}\\\\p{Lm}\\\\p{Lo}\\\\p{M}]+"
    "[\\\\p{Ll}\\\\p{Lm}\\\\p{Lo}\\\\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    "|\\\\p{N}{1,3}| ?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n/]*|\\\\s*[\\\\r\\\\n]+"
    "|\\\\s+(?!\\\\S)|\\\\s+";

static void add_added_tokens(msa__text *text)
{
    char line[256];
    msa__text_puts(text, "  \"added_tokens\": [\n");
    int32_t n = (int32_t)(sizeof(added_tokens) / sizeof(added_tokens[0]));
    for (int32_t i = 0; i < n; i++) {
        int32_t special = !(i >= FIRST_PLAIN && i <= LAST_PLAIN) && i < FIRST_MARK;
        (void)snprintf(line, sizeof(line),
                       "    {\"id\": %d, \"content\": \"%s\", \"single_word\": false, \"lstrip\": "
                       "false, \"rstrip\": false, \"normalized\": false, \"special\": %s}%s\n",
                       MSA__MADE_FIRST_ADDED + i, added_tokens[i], special ? "true" : "false",
                       i + 1 < n ? "," : "");
        msa__text_puts(text, line);
    }
    msa__text_puts(text, "  ],\n");
}

static void add_vocabulary(msa__text *text)
{
    int32_t n_unprintable = 0;
    msa__text_puts(text, "    \"vocab\": {\n");
    for (int32_t byte = 0; byte < 256; byte++) {
        char line[64];
        int32_t printable = (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte != 0xad);
        int32_t letter = printable ? byte : 0x100 + n_unprintable++;
        (void)snprintf(line, sizeof(line), "      \"\\u%04x\": %d%s\n", (unsigned)letter, byte,
                       byte < 255 ? "," : "");
        msa__text_puts(text, line);
    }
    msa__text_puts(text, "    },\n    \"merges\": []\n");
}

void msa__made_tokenizer(msa__text *text)
{
    msa__text_puts(text, "{\n  \"version\": \"1.0\",\n  \"truncation\": null,\n"
                         "  \"padding\": null,\n");
    add_added_tokens(text);
    msa__text_puts(text, "  \"normalizer\": null,\n"
                         "  \"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": [\n"
                         "    {\"type\": \"Split\", \"pattern\": {\"Regex\": \"");
    msa__text_puts(text, pattern);
    msa__text_puts(text, "\"}, \"behavior\": \"Isolated\", \"invert\": false},\n"
                         "    {\"type\": \"ByteLevel\", \"add_prefix_space\": false, "
                         "\"trim_offsets\": true, \"use_regex\": false}\n  ]},\n"
                         "  \"post_processor\": null,\n"
                         "  \"decoder\": {\"type\": \"ByteLevel\", \"add_prefix_space\": true, "
                         "\"trim_offsets\": true, \"use_regex\": true},\n"
                         "  \"model\": {\n    \"type\": \"BPE\",\n    \"dropout\": null,\n"
                         "    \"unk_token\": null,\n    \"continuing_subword_prefix\": null,\n"
                         "    \"end_of_word_suffix\": null,\n    \"fuse_unk\": false,\n"
                         "    \"byte_fallback\": false,\n    \"ignore_merges\": false,\n");
    add_vocabulary(text);
    msa__text_puts(text, "  }\n}\n");
}

void msa__made_tokenizer_config(msa__text *text)
{
    msa__text_puts(text, "{\n  \"tokenizer_class\": \"PreTrainedTokenizerFast\",\n"
                         "  \"bos_token\": \"]~b]\",\n  \"eos_token\": \"[e~[\",\n"
                         "  \"pad_token\": \"]!p~[\",\n  \"add_bos_token\": false,\n"
                         "  \"add_eos_token\": false,\n"
                         "  \"clean_up_tokenization_spaces\": false,\n"
                         "  \"model_max_length\": 1048576\n}\n");
}
