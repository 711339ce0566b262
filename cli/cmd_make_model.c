/* msa make-model: write a small random checkpoint, for tests and demonstrations. */
#include "command.h"
#include "output.h"
#include "progress.h"

#include "msa/model.h"

#include <dirent.h>
#include <stdio.h>
#include <string.h>

typedef struct make_options {
    const char *dir, *preset;
    int64_t seed;
    int32_t force;
} make_options;

/* 1 when the folder exists and holds something. */
static int has_entries(const char *dir)
{
    int found = 0;
    DIR *folder = opendir(dir);
    const struct dirent *entry;
    while (folder && !found && (entry = readdir(folder))) {
        found = strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
    }
    if (folder) closedir(folder);
    return found;
}

static void watch(void *user, int64_t done, int64_t total)
{
    cli_progress_update(user, done >> 20, total >> 20);
}

static int run_make_model(const void *values)
{
    const make_options *o = values;
    cli_progress bar;
    char a[32];
    if (!o->force && has_entries(o->dir)) {
        return cli_complain("%s is not empty; --force writes into it all the same", o->dir);
    }
    cli_progress_begin(&bar, "writing", "MiB", 0);
    msa_status status = msa_model_make(o->dir, o->preset, (uint64_t)o->seed, watch, &bar);
    cli_progress_clear();
    if (status != MSA_OK) return cli_complain_library(status);
    cli_talk("%s: preset %s, seed %lld, %s\n", o->dir, o->preset, (long long)o->seed,
             cli_duration(cli_seconds() - bar.start_seconds, a));
    return CLI_OK;
}

static void list_presets(void (*row)(const char *name, const char *text))
{
    const char *name, *description;
    for (int32_t i = 0; (name = msa_model_preset(i, &description)); i++) row(name, description);
}

static const cli_option arguments[] = {
    {CLI_FOLDER, 0, "DIR", NULL, offsetof(make_options, dir), NULL, 0, 0,
     "Folder to write; made when missing, refused when it holds files."},
    {0},
};

static const cli_option options[] = {
    {CLI_TEXT, 'p', "preset", "NAME", offsetof(make_options, preset), "small", 0, 0,
     "Size of the model, from the list below."},
    {CLI_COUNT, 's', "seed", "N", offsetof(make_options, seed), "0", 0, 9007199254740992.0,
     "The same seed writes the same files on every machine."},
    {CLI_FLAG, 0, "force", NULL, offsetof(make_options, force), NULL, 0, 0,
     "Write into a folder that is not empty; files of the same names are replaced."},
    {0},
};

const cli_command cli_cmd_make_model = {
    .name = "make-model",
    .summary = "Write a small random M3-shaped model, for tests and demonstrations.",
    .details = "The folder looks like a released one: config.json, generation_config.json, "
               "safetensors and a byte-level tokenizer. The text such a model writes is noise.",
    .examples = "msa make-model demo --preset small\nmsa inspect demo",
    .arguments = arguments,
    .options = options,
    .list_title = "Presets",
    .list = list_presets,
    .values_bytes = sizeof(make_options),
    .run = run_make_model,
};
