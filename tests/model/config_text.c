/* See config_text.h. */
#include "model/config_text.h"

#include "harness/cmocka_all.h"

#include <stdio.h>
#include <stdlib.h>

char *config_with(const char *text, const char *from, const char *to)
{
    const char *at = strstr(text, from);
    if (!at) fail_msg("the config has no %s", from);
    size_t room = strlen(text) + strlen(to) + 1;
    char *changed = malloc(room);
    assert_non_null(changed);
    snprintf(changed, room, "%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
    return changed;
}

msa_status config_parse(msa__config *config, const char *text)
{
    const msa__json *root;
    EXPECT_OK(msa__json_parse(&root, NULL, "config.json", text, strlen(text)));
    msa_status status = msa__config_parse(config, root);
    msa__json_free(root);
    return status;
}

void expect_refusals(const char *base, const refusal *cases, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        msa__config config;
        char *text = config_with(base, cases[i].from, cases[i].to);
        EXPECT_FAIL(cases[i].code, cases[i].message, config_parse(&config, text));
        free(text);
    }
}
