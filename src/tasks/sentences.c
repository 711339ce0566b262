/* Where sentences of a text end, and sentences from our own words; see sentences.h. */
#include "tasks/sentences.h"

#include "tasks/word_list.h"

#define LONGEST 600 /* bytes: text without full stops is cut at a space */

static int is_space(char c)
{
    return (unsigned char)c <= ' '; /* control characters too */
}

static int closes(char c)
{
    return c == '"' || c == '\'' || c == ')' || c == ']' || c == '_' || c == '*';
}

int msa__has_sentence(const char *text, size_t text_bytes)
{
    for (size_t i = 0; i < text_bytes; i++) {
        if (!is_space(text[i])) return 1;
    }
    return 0;
}

/* Whether the sentence is over before byte i: a full stop and its closing quotes lie behind, or an
 * empty line ahead. Only white space ends a sentence, so a cut never splits a character. */
static int ends_at(const char *text, size_t begin, size_t end, size_t i)
{
    if (!is_space(text[i])) return 0;
    if (text[i] == '\n') {
        size_t j = i + 1;
        while (j < end && text[j] != '\n' && is_space(text[j])) j++;
        if (j < end && text[j] == '\n') return 1;
    }
    /* Typographic quotes are three bytes: E2 80 9D and E2 80 99. */
    while (i > begin && (closes(text[i - 1]) ||
                         (i - begin > 3 && text[i - 3] == '\xe2' && text[i - 2] == '\x80'))) {
        i -= closes(text[i - 1]) ? 1 : 3;
    }
    char last = i > begin ? text[i - 1] : ' ';
    return last == '.' || last == '!' || last == '?';
}

/* End of the sentence that begins at `begin`. */
static size_t sentence_end(const char *text, size_t begin, size_t text_bytes)
{
    size_t i = begin, space = 0;
    while (i < text_bytes && !ends_at(text, begin, text_bytes, i)) {
        if (is_space(text[i])) space = i;
        if (i - begin >= LONGEST) {
            if (space) return space;
            while ((text[i] & 0xc0) == 0x80 && i > begin + LONGEST - 4)
                i--; /* not in a character */
            return i;
        }
        i++;
    }
    return i;
}

/* The next sentence's range; the text begins again after its end. */
static size_t next_sentence(msa__sentences *sentences, size_t *end)
{
    const char *text = sentences->task->text;
    size_t bytes = sentences->task->text_bytes, at = sentences->at;
    while (at >= bytes || is_space(text[at])) at = at >= bytes ? 0 : at + 1;
    *end = sentences->at = sentence_end(text, at, bytes);
    return at;
}

void msa__sentences_begin(msa__sentences *sentences, const msa__task *task)
{
    size_t end;
    sentences->task = task;
    sentences->next = 0;
    sentences->at = 0;
    if (!task->text) return;
    uint64_t high = msa__draw(&task->draws, MSA__STREAM_FILLER, 0);
    uint64_t low = msa__draw(&task->draws, MSA__STREAM_FILLER, 1);
    sentences->at = (size_t)((high << 32 | low) % task->text_bytes);
    (void)next_sentence(sentences, &end); /* the rest of the one that this byte lies in */
}

static void add_from_text(msa__sentences *sentences, msa__string *out)
{
    const char *text = sentences->task->text;
    size_t end, at = next_sentence(sentences, &end);
    while (at < end) {
        size_t word = at;
        while (at < end && !is_space(text[at])) at++;
        msa__string_add(out, text + word, at - word);
        while (at < end && is_space(text[at])) at++;
        if (at < end) msa__string_add(out, " ", 1);
    }
}

/* ---- made up ------------------------------------------------------------------------------ */

/* a adjective, n noun, v verb; the rest stands for itself. */
static const char *const patterns[] = {
    "The @a @n will @v beside the @n.",        "Every @n in the @n can @v.",
    "No one saw the @n @v before the @a @n.",  "One @a @n and one @a @n rest near the @n.",
    "They let the @n @v until the @n was @a.", "Some say that the @n is @a, others that it is @a.",
    "When the @n is @a, we @v and @v.",        "Between the @a @n and the @n lies one @n.",
};

static const char *word(msa__sentences *sentences, char kind, uint64_t i)
{
    const msa__draws *draws = &sentences->task->draws;
    const char *const *words = kind == 'a'   ? msa__adjectives
                               : kind == 'n' ? msa__nouns
                                             : msa__verbs;
    int32_t n = kind == 'a' ? msa__n_adjectives : kind == 'n' ? msa__n_nouns : msa__n_verbs;
    return words[msa__draw_below(draws, MSA__STREAM_FILLER, i, (uint32_t)n)];
}

static void add_made_up(msa__sentences *sentences, msa__string *out)
{
    uint64_t draw = sentences->next++ * 8; /* one for the pattern, at most seven words */
    const uint32_t n_patterns = (uint32_t)(sizeof(patterns) / sizeof(*patterns));
    const char *c =
        patterns[msa__draw_below(&sentences->task->draws, MSA__STREAM_FILLER, draw++, n_patterns)];
    for (; *c; c++) {
        if (*c == '@') {
            msa__string_print(out, "%s", word(sentences, *++c, draw++));
        } else {
            msa__string_add(out, c, 1);
        }
    }
}

void msa__sentences_add(msa__sentences *sentences, msa__string *out)
{
    if (sentences->task->text) {
        add_from_text(sentences, out);
    } else {
        add_made_up(sentences, out);
    }
}
