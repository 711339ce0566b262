/* JSON: any bytes give a tree whose links and strings hold, or an error. */
#include "fuzz/fuzz.h"

#include "model/json.h"

#include <string.h>

/* Every value's parent is the container it was found in, and every string is inside the document.
 */
static void check_value(const msa__json *value)
{
    int32_t n_children = 0;
    if (value->text) FUZZ_CHECK(value->text[value->text_bytes] == '\0');
    if (value->parent && value->parent->type == MSA__JSON_OBJECT) {
        FUZZ_CHECK(value->key && value->key[value->key_bytes] == '\0');
    }
    MSA__JSON_EACH(child, value)
    {
        FUZZ_CHECK(child->parent == value);
        check_value(child);
        n_children++;
    }
    FUZZ_CHECK(n_children == value->n_children);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    const msa__json *root;
    msa_status status = msa__json_parse(&root, NULL, "fuzz", (const char *)data, bytes);
    FUZZ_CHECK((status == MSA_OK) == (root != NULL));
    if (!root) return 0;
    check_value(root);
    int64_t number;
    const msa__json *leaf = root;
    while (leaf->child) leaf = leaf->child;
    (void)!msa__json_int64(leaf, 0, 100, &number);
    msa__json_free(root);
    return 0;
}
