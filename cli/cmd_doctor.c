/* msa doctor: what this machine offers, what was built in, and whether it works. */
#include "command.h"
#include "machine.h"
#include "output.h"
#include "progress.h"

#include "msa/memory.h"

#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

static void line(const char *label, const char *text)
{
    cli_print("  %-18s %s\n", label, text);
}

static void print_memory(const cli_machine *machine)
{
    char text[128], a[32], b[32];
    struct rlimit locked;
    cli_print("\nMemory\n");
    if (machine->memory_total > 0) {
        snprintf(text, sizeof(text), "%s, %s available",
                 cli_bytes((double)machine->memory_total, a),
                 cli_bytes((double)machine->memory_available, b));
        line("total", text);
    } else {
        line("total", "unknown (/proc/meminfo is not readable)");
    }
    line("limit", machine->memory_limit > 0 ? cli_bytes((double)machine->memory_limit, a) : "none");
    line("page size", cli_bytes((double)sysconf(_SC_PAGESIZE), a));
    if (getrlimit(RLIMIT_MEMLOCK, &locked) == 0) {
        line("lockable",
             locked.rlim_cur == RLIM_INFINITY ? "no limit" : cli_bytes((double)locked.rlim_cur, a));
    }
}

/* One line a GPU, or why there is none. */
static void print_gpus(void)
{
    char label[32], text[160], a[32], b[32];
    msa_context_args args;
    msa_context_args_init(&args);
    args.backend = "cuda";
    cli_print("\nGPU\n");
    for (;; args.device++) {
        msa_context *ctx;
        int64_t free_bytes, total_bytes;
        msa_status status = msa_context_create(&ctx, &args);
        if (status == MSA_EINVAL && args.device > 0) return; /* past the last one */
        snprintf(label, sizeof(label), "cuda:%d", (int)args.device);
        if (status == MSA_OK) status = msa_memory_info(ctx, &free_bytes, &total_bytes);
        if (status == MSA_OK) {
            snprintf(text, sizeof(text), "%s, %s, %s free", msa_context_isa(ctx),
                     cli_bytes((double)total_bytes, a), cli_bytes((double)free_bytes, b));
            line(label, text);
        } else {
            static const char none[] = "not available: ";
            const char *reason = strstr(msa_last_error(), none);
            line(reason ? "none" : label, reason ? reason + sizeof(none) - 1 : msa_last_error());
            if (reason) return;
        }
        msa_context_destroy(ctx);
    }
}

static void print_parts(void)
{
#ifdef MSA_HAVE_LIBEDIT
    line("line editing", "libedit");
#else
    line("line editing", "none: plain input in msa chat (libedit-dev)");
#endif
#ifdef MSA_HAVE_ONEDNN
    line("matrix yardstick", "oneDNN, in msa bench attention");
#else
    line("matrix yardstick",
         "none: msa bench attention compares with this library's own product (libdnnl-dev)");
#endif
}

static void print_environment(void)
{
    static const char *const names[] = {"MSA_BACKEND", "MSA_CPU_ISA", "MSA_CUBLASLT",
                                        "MSA_THREADS"};
    cli_print("\nEnvironment\n");
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        const char *value = getenv(names[i]);
        line(names[i], value && *value ? value : "not set");
    }
}

static void print_isa_paths(void)
{
    char text[256];
    size_t used = 0;
    int32_t usable;
    const char *name;
    text[0] = '\0';
    for (int32_t i = 0; (name = msa_cpu_isa_name(i, &usable)) && used < sizeof(text); i++) {
        used += (size_t)snprintf(text + used, sizeof(text) - used, "%s%s%s", used ? ", " : "", name,
                                 usable ? "" : " (not on this machine)");
    }
    line("paths built in", used ? text : "none");
}

static int run_doctor(const void *values)
{
    cli_machine machine;
    char text[160], why[256] = "";
    int status = CLI_OK;
    (void)values;
    cli_read_machine(&machine);
    cli_print("msa %s\n\nProcessor\n", MSA_VERSION_TEXT);
    line("model", machine.cpu_model);
    snprintf(text, sizeof(text), "%d usable of %d", (int)machine.cpus_usable,
             (int)machine.cpus_online);
    line("CPUs", text);
    line("features", machine.cpu_features[0] ? machine.cpu_features : "none of those used here");
    print_isa_paths();

    msa_context_args args;
    msa_context_args_init(&args);
    msa_context *ctx = NULL;
    msa_status created = msa_context_create(&ctx, &args);
    if (created == MSA_OK) {
        snprintf(text, sizeof(text), "%s, %d thread%s", msa_context_isa(ctx),
                 (int)msa_context_threads(ctx), msa_context_threads(ctx) == 1 ? "" : "s");
        line("in use", text);
        line("backend", msa_context_backend(ctx));
    } else {
        snprintf(why, sizeof(why), "%s", msa_last_error()); /* asking for GPUs overwrites it */
    }
    print_memory(&machine);
    print_gpus();
    cli_print("\nOptional parts\n");
    print_parts();
    print_environment();
    if (created != MSA_OK) status = cli_complain("%s", why);
    msa_context_destroy(ctx);
    return status;
}

const cli_command cli_cmd_doctor = {
    .name = "doctor",
    .summary = "Report processor, memory, GPUs, optional parts and environment.",
    .details = "Fails when no working set-up can be made from the environment variables.",
    .run = run_doctor,
};
