/* Regression driver: runs a fuzz target on every file of a corpus, then on mutations of each.
 *
 * The mutations (truncation, flipped bits, overwritten and repeated pieces) are drawn from Philox
 * by file name and number, so a failure repeats.
 */
#define _POSIX_C_SOURCE 200809L
#include "fuzz/fuzz.h"

#include "base/rng.h"

#include <dirent.h>
#include <string.h>

#define MUTATIONS 300
#define MAX_BYTES (1 << 20)

static uint8_t input[MAX_BYTES], mutated[MAX_BYTES];

static size_t read_input(const char *dir, const char *name)
{
    char path[1024];
    snprintf(path, sizeof(path), "%s/%s", dir, name);
    FILE *file = fopen(path, "rb");
    if (!file) {
        perror(path);
        exit(1);
    }
    size_t bytes = fread(input, 1, sizeof(input), file);
    fclose(file);
    return bytes;
}

/* The target gets a heap copy of the exact size, so that a sanitizer sees the byte behind it. */
static void run_target(const uint8_t *data, size_t bytes)
{
    uint8_t *copy = malloc(bytes ? bytes : 1);
    if (!copy) exit(1);
    memcpy(copy, data, bytes);
    (void)LLVMFuzzerTestOneInput(copy, bytes);
    free(copy);
}

static size_t mutate(uint64_t key, uint64_t number, size_t bytes)
{
    uint32_t word[4];
    memcpy(mutated, input, bytes);
    msa__philox(key, number, 0, word);
    int n_steps = 1 + (int)(word[3] % 4);
    for (int step = 0; step < n_steps && bytes > 0; step++) {
        msa__philox(key, number, (uint64_t)step + 1, word);
        size_t at = word[1] % bytes, from = word[2] % bytes;
        size_t longest = bytes - (at > from ? at : from);
        switch (word[0] % 5) {
        case 0:
            bytes = at;
            break;
        case 1:
            mutated[at] ^= (uint8_t)(1u << (word[3] % 8));
            break;
        case 2:
            mutated[at] = (uint8_t)word[3];
            break;
        case 3:
            mutated[at] = "\"{}[],:\\0189-eu\xff"[word[3] % 16];
            break;
        default:
            memmove(mutated + at, mutated + from, word[3] % (longest + 1));
            break;
        }
    }
    return bytes;
}

int main(int argc, char **argv)
{
    long n_inputs = 0;
    for (int i = 1; i < argc; i++) {
        DIR *dir = opendir(argv[i]);
        if (!dir) {
            perror(argv[i]);
            return 1;
        }
        for (struct dirent *entry; (entry = readdir(dir)) != NULL;) {
            if (entry->d_name[0] == '.') continue;
            size_t bytes = read_input(argv[i], entry->d_name);
            uint64_t key = 0;
            for (const char *c = entry->d_name; *c; c++) key = key * 31 + (uint8_t)*c;
            run_target(input, bytes);
            for (uint64_t m = 0; m < MUTATIONS; m++) run_target(mutated, mutate(key, m, bytes));
            n_inputs++;
        }
        closedir(dir);
    }
    printf("%ld inputs and %ld mutations\n", n_inputs, n_inputs * MUTATIONS);
    return n_inputs > 0 ? 0 : 1;
}
