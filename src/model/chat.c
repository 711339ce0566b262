/* The chat prompt of MiniMax-M3, as its template renders it.
 *
 * The prompt is a sequence of blocks "]~b]role\n … [e~[\n": system (identity and thinking mode),
 * developer (instructions and tools), then the messages. Tool calls are XML-like, every tag behind
 * the marker "]<]minimax[>[".
 *
 * What is no template error but cannot be rendered (content that is a number, a role nobody knows)
 * is refused with MSA_EFORMAT instead of leaving text out.
 */
#include "base/error.h"
#include "model/chat_strings.h"
#include "model/json_optional.h"
#include "model/python_text.h"

#include <string.h>

typedef struct renderer {
    msa__text out;
    const msa__json *tools, *options;  /* NULL: none */
    const msa__json *root, *developer; /* contents of the leading messages, NULL: none */
    const msa__json *messages;
    const msa__json *first; /* message behind the leading ones */
} renderer;

static void put(renderer *r, const char *text)
{
    msa__text_puts(&r->out, text);
}

static int32_t has_text(const msa__json *object, const char *key, const char *text)
{
    const msa__json *value = msa__json_get(object, key);
    return value && msa__json_equals(value, text);
}

/* An optional member of one type; NULL when it does not count as true. */
static msa_status optional(const msa__json *object, const char *key, msa__json_type type,
                           const msa__json **value)
{
    *value = msa__json_get(object, key);
    if (!msa__python_true(*value)) *value = NULL;
    return *value ? msa__json_type_is(*value, type) : MSA_OK;
}

static int32_t has_role(const msa__json *message, const char *role)
{
    return message && has_text(message, "role", role);
}

/* ---- content ------------------------------------------------------------------------------ */

/* Whether a part stands for an image or a video; its marker is appended. */
static int32_t put_media(msa__text *out, const msa__json *part)
{
    if (has_text(part, "type", "image"))
        msa__text_puts(out, CHAT_IMAGE);
    else if (has_text(part, "type", "video"))
        msa__text_puts(out, CHAT_VIDEO);
    else
        return 0;
    return 1;
}

/* Append a message's content: a string, parts, or nothing. Parts of other types are dropped. */
static msa_status put_content(msa__text *out, const msa__json *content)
{
    if (is_null(content)) return MSA_OK;
    if (content->type != MSA__JSON_ARRAY) return msa__python_str(out, content);
    MSA__JSON_EACH(part, content)
    {
        const msa__json *text = part->type == MSA__JSON_STRING ? part : NULL;
        if (has_text(part, "type", "text")) text = msa__json_get(part, "text");
        if (text)
            MSA_TRY(msa__python_str(out, text));
        else
            (void)put_media(out, part);
    }
    return out->status;
}

/* Append a tool's result: the same, but a part's output wins over its text, and a part of another
 * type is printed. */
static msa_status put_result(msa__text *out, const msa__json *content)
{
    if (is_null(content)) return MSA_OK;
    if (content->type == MSA__JSON_STRING) return msa__python_str(out, content);
    if (content->type != MSA__JSON_ARRAY) {
        return msa__json_fail(content, MSA_EFORMAT, "must be a string, an array of parts or null");
    }
    MSA__JSON_EACH(part, content)
    {
        if (put_media(out, part)) continue;
        const msa__json *text = msa__json_get(part, "output");
        if (!text && has_text(part, "type", "text")) text = msa__json_get(part, "text");
        MSA_TRY(msa__python_str(out, text ? text : part));
    }
    return out->status;
}

/* ---- system and developer blocks ---------------------------------------------------------- */

static msa_status put_system(renderer *r)
{
    put(r, CHAT_BEGIN "]~b]system\n");
    if (msa__python_true(r->root))
        MSA_TRY(put_content(&r->out, r->root));
    else
        put(r, CHAT_IDENTITY);
    put(r, "\n\n" CHAT_THINKING);
    const msa__json *mode = msa__json_get(r->options, "thinking_mode");
    if (!mode || msa__json_equals(mode, "adaptive"))
        put(r, CHAT_ADAPTIVE);
    else if (msa__json_equals(mode, "enabled"))
        put(r, CHAT_ENABLED);
    else if (msa__json_equals(mode, "disabled"))
        put(r, CHAT_DISABLED);
    put(r, "</thinking_instructions>" CHAT_END);
    return r->out.status;
}

static msa_status put_developer(renderer *r)
{
    const msa__json *identity = msa__json_get(r->options, "model_identity");
    put(r, "]~b]developer\n");
    if (msa__python_true(r->developer))
        MSA_TRY(put_content(&r->out, r->developer));
    else if (identity)
        MSA_TRY(msa__python_str(&r->out, identity));
    else
        put(r, CHAT_DEVELOPER);
    if (r->tools) {
        put(r, "\n\n" CHAT_TOOLS_BEGIN);
        MSA__JSON_EACH(tool, r->tools)
        {
            const msa__json *function;
            MSA_TRY(msa__json_need(tool, "function", &function));
            put(r, "<tool>");
            MSA_TRY(msa__python_json(&r->out, function));
            put(r, "</tool>\n");
        }
        put(r, CHAT_TOOLS_END);
    }
    put(r, CHAT_END);
    return r->out.status;
}

/* ---- assistant messages ------------------------------------------------------------------- */

typedef struct span {
    const char *begin, *end;
} span;

static span strip_newlines(span s)
{
    while (s.begin < s.end && *s.begin == '\n') s.begin++;
    while (s.begin < s.end && s.end[-1] == '\n') s.end--;
    return s;
}

/* First or last place of a word, NULL: none. Texts may contain U+0000. */
static const char *find_word(span s, const char *word, int32_t last)
{
    const char *found = NULL;
    size_t n = strlen(word);
    for (const char *c = s.begin; (size_t)(s.end - c) >= n; c++) {
        c = memchr(c, word[0], (size_t)(s.end - c) - n + 1);
        if (!c) break;
        if (memcmp(c, word, n) != 0) continue;
        found = c;
        if (!last) break;
    }
    return found;
}

/* Cut "reasoning</mm:think>content": reasoning ends before the first end mark and starts behind the
 * last start mark in it; content starts behind the last end mark. */
static void split_reasoning(span *content, span *reasoning)
{
    const char *first = find_word(*content, CHAT_THINK_END, 0);
    if (!first) return;
    const char *last = find_word(*content, CHAT_THINK_END, 1);
    span before = strip_newlines((span){content->begin, first});
    const char *start = find_word(before, CHAT_THINK, 1);
    if (start) before.begin = start + strlen(CHAT_THINK);
    *reasoning = strip_newlines(before);
    *content = strip_newlines((span){last + strlen(CHAT_THINK_END), content->end});
}

static void put_tag(renderer *r, const char *open, const char *name, size_t bytes)
{
    put(r, CHAT_NAMESPACE);
    put(r, open);
    msa__text_add(&r->out, name, bytes);
    put(r, ">");
}

/* An argument's value: members and items become elements, null members disappear. */
static msa_status put_argument(renderer *r, const msa__json *value)
{
    switch (value->type) {
    case MSA__JSON_NULL:
        break;
    case MSA__JSON_FALSE:
        put(r, "false");
        break;
    case MSA__JSON_TRUE:
        put(r, "true");
        break;
    case MSA__JSON_NUMBER:
        return msa__python_number(&r->out, value);
    case MSA__JSON_STRING:
        msa__text_add(&r->out, value->text, value->text_bytes);
        break;
    case MSA__JSON_ARRAY:
    case MSA__JSON_OBJECT:
        MSA__JSON_EACH(item, value)
        {
            if (item->key && item->type == MSA__JSON_NULL) continue;
            const char *name = item->key ? item->key : "item";
            size_t bytes = item->key ? item->key_bytes : strlen("item");
            put_tag(r, "<", name, bytes);
            MSA_TRY(put_argument(r, item));
            put_tag(r, "</", name, bytes);
        }
        break;
    }
    return r->out.status;
}

static msa_status put_tool_calls(renderer *r, const msa__json *calls)
{
    put(r, CHAT_NAMESPACE "<tool_call>\n");
    MSA__JSON_EACH(call, calls)
    {
        const msa__json *function = msa__json_get(call, "function"), *name, *arguments;
        if (!msa__python_true(function)) function = call;
        MSA_TRY(need_typed(function, "name", MSA__JSON_STRING, &name));
        MSA_TRY(need_typed(function, "arguments", MSA__JSON_OBJECT, &arguments));
        put(r, CHAT_NAMESPACE "<invoke name=\"");
        msa__text_add(&r->out, name->text, name->text_bytes);
        put(r, "\">");
        MSA_TRY(put_argument(r, arguments));
        put(r, CHAT_NAMESPACE "</invoke>\n");
    }
    put(r, CHAT_NAMESPACE "</tool_call>");
    return r->out.status;
}

static msa_status put_assistant(renderer *r, const msa__json *message, const msa__json *calls)
{
    msa__text text = {0};
    msa_status status = put_content(&text, msa__json_get(message, "content"));
    if (status != MSA_OK) {
        msa__text_free(&text);
        return status;
    }
    const char *bytes = text.bytes ? text.bytes : "";
    span content = {bytes, bytes + text.n}, reasoning = {bytes, bytes};
    const msa__json *given = msa__json_get(message, "reasoning_content");
    if (given && given->type == MSA__JSON_STRING) {
        reasoning = (span){given->text, given->text + given->text_bytes};
    } else {
        split_reasoning(&content, &reasoning);
    }
    put(r, "]~b]ai\n");
    if (reasoning.end > reasoning.begin) {
        put(r, CHAT_THINK);
        msa__text_add(&r->out, reasoning.begin, (size_t)(reasoning.end - reasoning.begin));
    }
    put(r, CHAT_THINK_END);
    msa__text_add(&r->out, content.begin, (size_t)(content.end - content.begin));
    msa__text_free(&text);
    if (calls) MSA_TRY(put_tool_calls(r, calls));
    put(r, CHAT_END);
    return r->out.status;
}

/* ---- messages ----------------------------------------------------------------------------- */

/* Adjacent tool results share one block. */
static msa_status put_tool_result(renderer *r, const msa__json *message, const msa__json *previous)
{
    if (!has_role(previous, "tool")) put(r, "]~b]tool");
    put(r, "\n<response>");
    MSA_TRY(put_result(&r->out, msa__json_get(message, "content")));
    put(r, "</response>");
    if (!has_role(message->next, "tool")) put(r, CHAT_END);
    return r->out.status;
}

static msa_status put_messages(renderer *r)
{
    int32_t tool_was_called = 0;
    const msa__json *previous = NULL;
    for (const msa__json *message = r->first; message; message = message->next) {
        const msa__json *role, *calls;
        MSA_TRY(msa__json_need(message, "role", &role));
        if (msa__json_equals(role, "user")) {
            put(r, "]~b]user\n");
            MSA_TRY(put_content(&r->out, msa__json_get(message, "content")));
            put(r, CHAT_END);
        } else if (msa__json_equals(role, "assistant")) {
            MSA_TRY(optional(message, "tool_calls", MSA__JSON_ARRAY, &calls));
            tool_was_called = calls != NULL;
            MSA_TRY(put_assistant(r, message, calls));
        } else if (msa__json_equals(role, "tool")) {
            if (!tool_was_called) return MSA_FAIL(MSA_EINVAL, CHAT_ERROR_NO_CALL);
            MSA_TRY(put_tool_result(r, message, previous));
        } else if (!msa__json_equals(role, "root") && !msa__json_equals(role, "system") &&
                   !msa__json_equals(role, "developer")) {
            return msa__json_fail(role, MSA_EFORMAT,
                                  "must be root, system, developer, user, assistant or tool");
        } /* else: the template drops all but the leading ones */
        previous = message;
    }
    return r->out.status;
}

static msa_status put_generation_prompt(renderer *r)
{
    if (!msa__python_true(msa__json_get(r->options, "add_generation_prompt"))) return MSA_OK;
    put(r, "]~b]ai\n");
    if (has_text(r->options, "thinking_mode", "enabled")) put(r, CHAT_THINK);
    if (has_text(r->options, "thinking_mode", "disabled")) put(r, CHAT_THINK_END);
    return r->out.status;
}

/* A leading root message, then a leading system or developer message. */
static void take_leading_messages(renderer *r)
{
    r->first = r->messages->child;
    if (has_role(r->first, "root")) {
        r->root = msa__json_get(r->first, "content");
        r->first = r->first->next;
    }
    if (has_role(r->first, "system") || has_role(r->first, "developer")) {
        r->developer = msa__json_get(r->first, "content");
        r->first = r->first->next;
    }
}

static msa_status render(renderer *r, const msa__json *request)
{
    MSA_TRY(need_typed(request, "messages", MSA__JSON_ARRAY, &r->messages));
    MSA_TRY(optional(request, "tools", MSA__JSON_ARRAY, &r->tools));
    MSA_TRY(optional(request, "options", MSA__JSON_OBJECT, &r->options));
    take_leading_messages(r);
    MSA_TRY(put_system(r));
    MSA_TRY(put_developer(r));
    MSA_TRY(put_messages(r));
    return put_generation_prompt(r);
}

msa_status msa_chat_render(const char *request, size_t request_bytes, char **text,
                           size_t *text_bytes)
{
    if ((!request && request_bytes) || !text || !text_bytes) {
        return MSA_FAIL(MSA_EINVAL, "chat_render: an argument is NULL");
    }
    *text = NULL;
    *text_bytes = 0;
    const msa__json *root;
    MSA_TRY(msa__json_parse(&root, NULL, "chat request", request, request_bytes));
    renderer r = {0};
    msa_status status = render(&r, root);
    msa__json_free(root);
    if (status != MSA_OK) {
        msa__text_free(&r.out);
        return status;
    }
    return msa__text_finish(&r.out, text, text_bytes);
}

msa_status msa_chat_check(const char *dir)
{
    if (!dir) return MSA_FAIL(MSA_EINVAL, "chat_check: dir must not be NULL");
    const msa__json *root, *type;
    MSA_TRY(msa__json_read(&root, NULL, dir, "config.json", (size_t)16 << 20));
    msa_status status = msa__json_need(root, "model_type", &type);
    if (status == MSA_OK && (type->type != MSA__JSON_STRING ||
                             strncmp(type->text, "minimax_m3", strlen("minimax_m3")) != 0)) {
        status = msa__json_fail(type, MSA_EUNSUPPORTED,
                                "must be a MiniMax-M3 model: other chat templates are not known");
    }
    msa__json_free(root);
    return status;
}
