/* See cases.h. */
#include "ops/cases.h"

#include "harness/cmocka_all.h"
#include "harness/reduced.h"
#include "ops/layer_fixture.h"

#include <stdio.h>
#include <stdlib.h>

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
    {"unforced",        2, 2, {100, 3},                {150, 170},              4, 2,  16, 16, 16,  3, 0, -1, 0, 0, 0, 0, FILL_NORMAL, 0},
    {"init-alone",      2, 2, {40, 3},                 {150, 170},              4, 2,  16, 16, 16,  3, 1, -1, 0, 0, 0, 0, FILL_TIES, 0},
    {"only-forced",     1, 1, {100},                   {150},                   2, 1,  16, 16, 16,  4, 1, 3, 0, 0, 0, 0, FILL_NORMAL, 0},
    {"groups-of-32",    2, 2, {2, 1},                  {30, 300},              32, 1, 128, 64, 256, 2, 0, 1, 0, 0, 0, 0, FILL_NORMAL, 0},
    {"wide-heads",      2, 2, {2, 1},                  {50, 70},                4, 2, 512, 512, 16, 2, 0, 1, 0, 0, 0, 0, FILL_NORMAL, 0},
    {"m3-heads",        2, 2, {2, 1},                  {130, 270},             64, 4, 128, 128, 128, 2, 0, 1, 0, 0, 0, 0, FILL_NORMAL, 0},
    {"short-documents", 5, 5, {1, 3, 0, 5, 1},         {1, 3, 0, 5, 40},        4, 2,  16, 16, 16,  2, 0, 1, 0, 0, 0, 0, FILL_NORMAL, 0},
    {"no-tokens",       1, 1, {0},                     {40},                    4, 2,  16, 16, 16,  2, 0, 1, 0, 0, 0, 0, FILL_NORMAL, 0},
    {"1030-sequences", 1030, 3, {1, 1, 2},             {1, 20, 33},             2, 1,  16, 16, 16,  2, 0, 1, 0, 0, 0, 0, FILL_NORMAL, 0},
};

/* Shapes that the kernels of a device take their fast paths for: blocks of 128, heads of 64 and 128,
 * contexts of several tiles and splits; lengths around the edges of blocks and tiles, drafts, batches
 * of mixed and empty sequences, every group size and number of blocks in turn. */
static const problem_spec device_shapes[] = {
    /* name          seqs lens  T                       S                       Hq Hkv  D   Di   Bk  K init local */
    {"chunk",           1, 1, {141},                   {4437},                 64, 4, 128, 128, 128, 16, 0, 1, 0, 0, 0, 0, FILL_NORMAL, 0},
    {"chunks",          4, 4, {67, 1, 0, 64},          {2300, 2177, 500, 64},  64, 4, 128, 128, 128, 16, 0, 1, 0, 0, 0, 0, FILL_NORMAL, 0},
    {"whole-prompt",    2, 2, {300, 129},              {300, 129},             16, 1, 128, 128, 128, 2, 0, 1, 0, 0, 0, 0, FILL_NORMAL, 0},
    {"steps",           5, 5, {1, 1, 1, 0, 1},         {8193, 4096, 129, 0, 1}, 64, 4, 128, 128, 128, 16, 0, 1, 0, 0, 0, 0, FILL_NORMAL, 0},
    {"drafts",          5, 5, {2, 5, 16, 1, 11},       {3072, 5, 4100, 127, 2049}, 64, 4, 128, 128, 128, 16, 0, 1, 0, 0, 0, 0, FILL_NORMAL, 0},
    {"many-steps",     40, 5, {1, 1, 2, 1, 0},         {1023, 640, 900, 2, 77}, 64, 4, 128, 128, 128, 4, 0, 1, 0, 0, 0, 0, FILL_NORMAL, 0},
    {"device-edges",    5, 5, {1, 1, 127, 1, 128},     {2047, 2048, 2175, 2049, 256}, 16, 4, 128, 128, 128, 16, 0, 1, 0, 0, 0, 0, FILL_NORMAL, 0},
    {"device-ties",     2, 2, {35, 1},                 {3001, 6000},           32, 4, 128, 128, 128, 16, 0, 1, 0, 0, 0, 0, FILL_TIES, 0},
    {"device-zeros",    2, 2, {20, 1},                 {2500, 5000},           16, 4, 128, 128, 128, 8, 0, 1, 0, 0, 0, 0, FILL_ZERO, 0},
    {"device-forced",   2, 2, {40, 3},                 {3000, 2800},           16, 4, 128, 128, 128, 8, 2, 3, 0, 0, 0, 0, FILL_NORMAL, 0},
    {"device-unforced", 2, 2, {40, 3},                 {3000, 2800},           16, 4, 128, 128, 128, 8, 0, -1, 0, 0, 0, 0, FILL_NORMAL, 0},
    {"blocks-64",       2, 2, {9, 1},                  {9000, 10001},          16, 2, 128, 128, 128, 64, 0, 1, 0, 0, 0, 0, FILL_NORMAL, 0},
    {"blocks-1",        2, 2, {70, 1},                 {1500, 2000},           16, 4, 128, 128, 128, 1, 0, 1, 0, 0, 0, 0, FILL_NORMAL, 0},
    {"blocks-31",       2, 2, {12, 4},                 {6000, 5003},           8, 4, 128, 128, 128, 31, 1, 1, 0, 0, 0, 0, FILL_NORMAL, 0},
    {"groups-of-1",     2, 2, {66, 2},                 {2100, 3000},           4, 4, 128, 128, 128, 5, 0, 1, 0, 0, 0, 0, FILL_NORMAL, 0},
    {"groups-of-5",     2, 2, {30, 3},                 {1900, 3000},           10, 2, 128, 128, 128, 7, 0, 1, 0, 0, 0, 0, FILL_NORMAL, 0},
    {"groups-of-8",     2, 2, {70, 2},                 {2100, 3000},           16, 2, 128, 128, 128, 12, 0, 1, 0, 0, 0, 0, FILL_NORMAL, 0},
    {"heads-of-64",     3, 3, {70, 1, 16},             {2300, 4500, 700},      32, 4, 64, 64, 128, 16, 0, 1, 0, 0, 0, 0, FILL_NORMAL, 0},
    {"heads-of-64-128", 2, 2, {33, 1},                 {1700, 2500},           8, 8, 64, 128, 128, 3, 0, 1, 0, 0, 0, 0, FILL_NORMAL, 0},
    {"blocks-of-64",    3, 3, {70, 1, 16},             {2300, 4500, 700},      32, 4, 64, 64, 64, 32, 0, 1, 0, 0, 0, 0, FILL_NORMAL, 0},
    {"blocks-of-32",    3, 3, {66, 1, 16},             {2321, 3001, 700},      16, 4, 128, 128, 32, 64, 0, 1, 0, 0, 0, 0, FILL_NORMAL, 0},
    {"blocks-of-32-unforced", 2, 2, {70, 3},           {1700, 2500},           8, 2, 64, 64, 32, 20, 0, -1, 0, 0, 0, 0, FILL_TIES, 0},
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

/* bf16 and fp8 pages for every device shape, then in turn one of what takes other paths. */
static const variant device_variants[] = {{1, 1, 1, 0, 0}, {1, 3, 1, 0, 0}, {1, 1, 0, 0, 0},
                                          {1, 1, 1, 0, 1}, {2, 1, 1, 0, 0}, {1, 3, 0, 0, 0},
                                          {1, 1, 1, 1, 0}};

/* MSA_TEST_PART, such as 0of8: every eighth case from the first on. Under a slow tool the parts of
 * a table can then run side by side. */
static int is_in_part(void)
{
    static int n_met;
    const char *part = getenv("MSA_TEST_PART");
    int i = 0, n = 1;
    if (part && (sscanf(part, "%dof%d", &i, &n) != 2 || i < 0 || i >= n)) {
        fail_msg("MSA_TEST_PART = %s, must be like 0of8", part);
    }
    return n_met++ % n == i;
}

static void visit_variant(const problem_spec *shape, variant v, case_visitor visit, void *arg)
{
    problem_spec spec = *shape;
    if (!is_in_part()) return;
    spec.q_dtype = v.q_dtype;
    spec.cache_dtype = v.cache_dtype;
    spec.paged = v.paged;
    spec.oversized = v.oversized;
    spec.mixed = v.mixed;
    visit(&spec, arg);
}

static void for_each_device_case(int is_reduced, case_visitor visit, void *arg)
{
    for (size_t i = 0; i < sizeof(device_shapes) / sizeof(device_shapes[0]); i++) {
        visit_variant(&device_shapes[i], device_variants[is_reduced ? i % 2 : 0], visit, arg);
        if (is_reduced) continue;
        visit_variant(&device_shapes[i], device_variants[1], visit, arg);
        visit_variant(&device_shapes[i], device_variants[2 + i % 5], visit, arg);
    }
}

/* One variant a shape, for tools under which a run takes long. */
static void for_each_reduced_case(case_visitor visit, void *arg)
{
    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
        visit_variant(&shapes[i], variants[i % 5], visit, arg);
    }
}

void for_each_case(case_visitor visit, void *arg)
{
    int is_reduced = test_is_reduced();
    if (test_backend()) for_each_device_case(is_reduced, visit, arg);
    if (is_reduced) {
        for_each_reduced_case(visit, arg);
        return;
    }
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

/* Each shape in f32 and bf16, and in turn one of the mixed pairs. */
void for_each_packed_case(case_visitor visit, void *arg)
{
    static const variant pure[] = {{0, 0, 0, 0, 0}, {1, 1, 0, 1, 0}};
    static const variant close = {1, 1, 0, 0, 0}; /* rows as fast kernels of a device want them */
    static const variant mixed[] = {{2, 1, 0, 0, 0}, {1, 0, 0, 0, 0}, {0, 1, 0, 1, 0}};
    int is_reduced = test_is_reduced();
    for (size_t i = 0; i < sizeof(device_shapes) / sizeof(device_shapes[0]); i++) {
        if (test_backend()) visit_variant(&device_shapes[i], close, visit, arg);
    }
    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
        visit_variant(&shapes[i], pure[i % 2], visit, arg);
        if (test_backend()) visit_variant(&shapes[i], close, visit, arg);
        if (is_reduced) continue;
        visit_variant(&shapes[i], pure[1 - i % 2], visit, arg);
        visit_variant(&shapes[i], mixed[i % 3], visit, arg);
    }
}

problem_spec case_named(const char *name)
{
    enum { N_SHAPES = sizeof(shapes) / sizeof(shapes[0]) };
    for (size_t i = 0; i < N_SHAPES + sizeof(device_shapes) / sizeof(device_shapes[0]); i++) {
        problem_spec spec = i < N_SHAPES ? shapes[i] : device_shapes[i - N_SHAPES];
        if (strcmp(spec.name, name) != 0) continue;
        spec.paged = 1;
        return spec;
    }
    fail_msg("no case %s", name);
    return shapes[0];
}
