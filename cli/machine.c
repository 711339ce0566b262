/* Processor and memory of this machine; see machine.h. */
#define _GNU_SOURCE /* sched_getaffinity */
#include "machine.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

/* Feature words of /proc/cpuinfo (x86 "flags", Arm "Features") worth naming. */
static const char *const interesting[] = {
    "avx",         "avx2",        "fma",         "f16c",     "avx512f",  "avx512bw", "avx512vl",
    "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8", "asimd",
    "asimddp",     "bf16",        "i8mm",        "sve",      "sve2",
};

static void add_features(cli_machine *machine, const char *line)
{
    size_t used = 0;
    for (size_t i = 0; i < sizeof(interesting) / sizeof(interesting[0]); i++) {
        size_t length = strlen(interesting[i]);
        for (const char *at = line; (at = strstr(at, interesting[i])); at += length) {
            int begins = at[-1] == ' ' || at[-1] == '\t';
            int ends = at[length] == ' ' || at[length] == '\n' || at[length] == '\0';
            if (!begins || !ends) continue;
            used +=
                (size_t)snprintf(machine->cpu_features + used, sizeof(machine->cpu_features) - used,
                                 "%s%s", used ? " " : "", interesting[i]);
            break;
        }
    }
}

static void read_cpu(cli_machine *machine)
{
    char *line = NULL;
    size_t line_bytes = 0;
    FILE *file = fopen("/proc/cpuinfo", "r");
    snprintf(machine->cpu_model, sizeof(machine->cpu_model), "unknown");
    while (file && getline(&line, &line_bytes, file) > 0) {
        const char *colon = strchr(line, ':');
        if (!colon) {
            if (*line == '\n') break; /* the other processors are alike */
            continue;
        }
        if (strncmp(line, "model name", 10) == 0) {
            snprintf(machine->cpu_model, sizeof(machine->cpu_model), "%.*s",
                     (int)strcspn(colon + 2, "\n"), colon + 2);
        } else if (strncmp(line, "flags", 5) == 0 || strncmp(line, "Features", 8) == 0) {
            add_features(machine, colon + 1);
        }
    }
    free(line);
    if (file) fclose(file);
    cpu_set_t cpus;
    machine->cpus_online = (int32_t)sysconf(_SC_NPROCESSORS_ONLN);
    machine->cpus_usable = machine->cpus_online;
    if (sched_getaffinity(0, sizeof(cpus), &cpus) == 0) machine->cpus_usable = CPU_COUNT(&cpus);
}

/* Value of "Key:   123 kB" in /proc/meminfo, in bytes; 0 when absent. */
static int64_t meminfo(const char *key)
{
    char line[256];
    long long kilobytes = 0;
    FILE *file = fopen("/proc/meminfo", "r");
    while (file && fgets(line, sizeof(line), file)) {
        size_t length = strlen(key);
        if (strncmp(line, key, length) == 0 && line[length] == ':') {
            kilobytes = atoll(line + length + 1);
            break;
        }
    }
    if (file) fclose(file);
    return kilobytes * 1024;
}

/* A number alone in a file; -1 when it is not there or says "max". */
static int64_t number_in(const char *path)
{
    long long value = -1;
    FILE *file = fopen(path, "r");
    if (file) {
        if (fscanf(file, "%lld", &value) != 1) value = -1;
        fclose(file);
    }
    return value;
}

/* The process's own control group is mounted here inside a container. */
static void read_memory(cli_machine *machine)
{
    machine->memory_total = meminfo("MemTotal");
    machine->memory_available = meminfo("MemAvailable");
    int64_t limit = number_in("/sys/fs/cgroup/memory.max");
    int64_t used = number_in("/sys/fs/cgroup/memory.current");
    if (limit < 0) {
        limit = number_in("/sys/fs/cgroup/memory/memory.limit_in_bytes");
        used = number_in("/sys/fs/cgroup/memory/memory.usage_in_bytes");
    }
    struct rlimit space;
    if (limit > 0 && limit < machine->memory_total) {
        machine->memory_limit = machine->memory_total = limit;
        int64_t left = limit - (used > 0 ? used : 0);
        if (left < machine->memory_available) machine->memory_available = left;
    }
    if (getrlimit(RLIMIT_AS, &space) == 0 && space.rlim_cur != RLIM_INFINITY &&
        (int64_t)space.rlim_cur < machine->memory_available) {
        machine->memory_limit = machine->memory_available = (int64_t)space.rlim_cur;
    }
}

void cli_read_machine(cli_machine *machine)
{
    memset(machine, 0, sizeof(*machine));
    read_cpu(machine);
    read_memory(machine);
}
