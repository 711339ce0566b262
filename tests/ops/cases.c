/* See cases.h. */
#include "ops/cases.h"

#include "harness/cmocka_all.h"

/* clang-format off */
static const problem_spec shapes[] = {
    /* name          seqs lens  T                       S                       Hq Hkv  D  Di  Bk  K init local */
    {"typical",         3, 3, {20, 1, 40},             {100, 77, 40},           4, 2,  32, 32, 16,  4, 0, 1, 0, 0, 0, 0, FILL_NORMAL, 0},
    {"decode",          4, 4, {1, 1, 1, 1},            {1, 95, 96, 97},         8, 2,  32, 16, 32,  2, 0, 1, 0, 0, 0, 0, FILL_NORMAL, 0},
    {"ties",            3, 3, {17, 1, 40},             {130, 150, 40},          4, 2,  32, 16, 16,  4, 0, 1, 0, 0, 0, 0, FILL_TIES, 0},
    {"zeros",           2, 2, {20, 1},                 {90, 130},               4, 2,  16, 16, 16,  3, 0, 1, 0, 0, 0, 0, FILL_ZERO, 0},
    {"around-a-block",  4, 4, {1, 15, 16, 17},         {1, 15, 16, 17},         2, 1,  16, 16, 16,  2, 0, 1, 0, 0, 0, 0, FILL_NORMAL, 0},
    {"t-127-to-129",    3, 3, {127, 128, 129},         {127, 128, 200},         2, 1,  16, 16, 16,  3, 0, 1, 0, 0, 0, 0, FILL_NORMAL, 0},
    {"t-257",           1, 1, {257},                   {257},                   2, 1,  16, 16, 128, 2, 0, 1, 0, 0, 0, 0, FILL_NORMAL, 0},
    {"t-2-below-s",     2, 2, {2, 5},                  {83, 250},               4, 2,  48, 80, 16,  5, 0, 1, 0, 0, 0, 0, FILL_NORMAL, 0},
    {"all-blocks",      2, 2, {33, 2},                 {70, 64},                4, 4,  16, 16, 16, 64, 0, 1, 0, 0, 0, 0, FILL_NORMAL, 0},
    {"local-only",      2, 2, {33, 2},                 {70, 65},                4, 2,  16, 16, 16,  1, 0, 1, 0, 0, 0, 0, FILL_NORMAL, 0},
    {"forced",          2, 2, {100, 3},                {150, 170},              4, 2,  16, 16, 16,  6, 2, 3, 0, 0, 0, 0, FILL_NORMAL, 0},
    {"only-forced",     1, 1, {100},                   {150},                   2, 1,  16, 16, 16,  4, 1, 3, 0, 0, 0, 0, FILL_NORMAL, 0},
    {"groups-of-32",    2, 2, {2, 1},                  {30, 300},              32, 1, 128, 64, 256, 2, 0, 1, 0, 0, 0, 0, FILL_NORMAL, 0},
    {"wide-heads",      2, 2, {2, 1},                  {50, 70},                4, 2, 512, 512, 16, 2, 0, 1, 0, 0, 0, 0, FILL_NORMAL, 0},
    {"m3-heads",        2, 2, {2, 1},                  {130, 270},             64, 4, 128, 128, 128, 2, 0, 1, 0, 0, 0, 0, FILL_NORMAL, 0},
    {"short-documents", 5, 5, {1, 3, 0, 5, 1},         {1, 3, 0, 5, 40},        4, 2,  16, 16, 16,  2, 0, 1, 0, 0, 0, 0, FILL_NORMAL, 0},
    {"no-tokens",       1, 1, {0},                     {40},                    4, 2,  16, 16, 16,  2, 0, 1, 0, 0, 0, 0, FILL_NORMAL, 0},
    {"1030-sequences", 1030, 3, {1, 1, 2},             {1, 20, 33},             2, 1,  16, 16, 16,  2, 0, 1, 0, 0, 0, 0, FILL_NORMAL, 0},
};
/* clang-format on */

typedef struct variant {
    msa_dtype q_dtype, cache_dtype;
    int32_t paged, oversized, mixed;
} variant;

/* The first shapes meet every pair of dtypes in both layouts, the others these. */
enum { N_FULL = 3 };

static const variant variants[] = {
    {0, 0, 1, 0, 0}, {1, 1, 0, 0, 0}, {1, 3, 1, 1, 0}, {2, 1, 1, 0, 0}, {1, 1, 1, 0, 1}};

static void visit_variant(const problem_spec *shape, variant v, case_visitor visit, void *arg)
{
    problem_spec spec = *shape;
    spec.q_dtype = v.q_dtype;
    spec.cache_dtype = v.cache_dtype;
    spec.paged = v.paged;
    spec.oversized = v.oversized;
    spec.mixed = v.mixed;
    visit(&spec, arg);
}

void for_each_case(case_visitor visit, void *arg)
{
    static const msa_dtype q_dtypes[] = {0, 1, 2}, cache_dtypes[] = {0, 1, 3};
    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
        if (i >= N_FULL) {
            for (size_t v = 0; v < sizeof(variants) / sizeof(variants[0]); v++) {
                visit_variant(&shapes[i], variants[v], visit, arg);
            }
            continue;
        }
        for (int n = 0; n < 18; n++) {
            variant v = {q_dtypes[n / 2 % 3], cache_dtypes[n / 6], n % 2, n % 4 / 2, 0};
            visit_variant(&shapes[i], v, visit, arg);
        }
    }
}

problem_spec case_named(const char *name)
{
    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
        if (strcmp(shapes[i].name, name) != 0) continue;
        problem_spec spec = shapes[i];
        spec.paged = 1;
        return spec;
    }
    fail_msg("no case %s", name);
    return shapes[0];
}
