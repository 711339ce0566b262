/* config.json of a quantised model; see quantization.h.
 *
 * ignored_layers says which matrices keep their dtype, and the ordinary reader then tells the
 * writer: routers, as in MiniMax's release; embedding and output head, as there, unless asked for;
 * rows that groups of 32 do not divide; and what the caller keeps.
 */
#include "convert/mxfp8.h"
#include "convert/quantization.h"
#include "model/python_text.h"

#include <string.h>

typedef struct ignored_list {
    msa__text *text;
    const char *prefix; /* of the layout; MiniMax's list leaves it out outside the layers */
    int32_t embedding, n;
} ignored_list;

static void add_name(ignored_list *list, const char *name, size_t bytes)
{
    msa__text_puts(list->text, list->n++ ? ",\n      \"" : "\n      \"");
    msa__text_add(list->text, name, bytes);
    msa__text_puts(list->text, "\"");
}

static msa_status add_ignored(void *user, const msa__tensor_spec *spec)
{
    ignored_list *list = user;
    int32_t outer = spec->kind == MSA__KIND_EMBEDDING || spec->kind == MSA__KIND_HEAD;
    if (spec->columns == 0) return MSA_OK;
    if (spec->kind == MSA__KIND_ROUTER || (outer && !list->embedding) ||
        spec->columns % MSA__MXFP8_GROUP != 0) {
        const char *name = spec->name + (outer ? strlen(list->prefix) : 0);
        add_name(list, name, strlen(name) - strlen(".weight"));
    }
    return MSA_OK;
}

static void add_quantization(const msa__quantization *q, msa__text *text)
{
    ignored_list list = {
        .text = text, .prefix = msa__layout_prefix(&q->source), .embedding = q->args.embedding};
    msa__text_puts(text, "  \"quantization_config\": {\n"
                         "    \"quant_method\": \"mxfp8\",\n"
                         "    \"activation_scheme\": \"dynamic\",\n"
                         "    \"weight_block_size\": [1, 32],\n"
                         "    \"ignored_layers\": [");
    (void)!msa__layout_visit(&q->source, add_ignored, &list); /* add_ignored never fails */
    for (int32_t i = 0; i < q->args.n_keep; i++) {
        add_name(&list, q->args.keep[i], strlen(q->args.keep[i]));
    }
    msa__text_puts(text, list.n ? "\n    ]\n  }\n" : "]\n  }\n");
}

void msa__quantization_config(const msa__quantization *quantization, msa__text *text)
{
    msa__text_puts(text, "{\n");
    MSA__JSON_EACH(member, quantization->root)
    {
        if (!strcmp(member->key, "quantization_config")) continue; /* null */
        msa__text_puts(text, "  ");
        msa__python_json_key(text, member);
        if (text->status == MSA_OK) text->status = msa__python_json(text, member);
        msa__text_puts(text, ",\n");
    }
    add_quantization(quantization, text);
    msa__text_puts(text, "}\n");
}
