/* Opening libmsa_cuda.so: beside this library first, then wherever the loader looks. */
#define _GNU_SOURCE
#include "base/error.h"
#include "ops/backend.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#define PLUGIN_FILE  "libmsa_cuda.so.0"
#define PLUGIN_ENTRY "msa__cuda_backend_entry"

static pthread_once_t once = PTHREAD_ONCE_INIT;
static const msa__backend *backend; /* NULL: `why` tells */
static char why[256];

static void *open_beside_this_library(void)
{
    Dl_info info;
    char path[4096];
    if (!dladdr((const void *)&once, &info) || !info.dli_fname) return NULL;
    const char *slash = strrchr(info.dli_fname, '/');
    int n = slash ? (int)(slash - info.dli_fname) : -1;
    if (n < 0 || (size_t)n + sizeof("/" PLUGIN_FILE) > sizeof(path)) return NULL;
    snprintf(path, sizeof(path), "%.*s/%s", n, info.dli_fname, PLUGIN_FILE);
    return dlopen(path, RTLD_NOW | RTLD_LOCAL);
}

/* The plugin stays open for the life of the process: contexts point into it. */
static void load(void)
{
    void *plugin = open_beside_this_library();
    if (!plugin) plugin = dlopen(PLUGIN_FILE, RTLD_NOW | RTLD_LOCAL);
    if (!plugin) {
        snprintf(why, sizeof(why), "%.200s", dlerror());
        return;
    }
    msa__backend_entry entry;
    void *symbol = dlsym(plugin, PLUGIN_ENTRY);
    memcpy(&entry, &symbol, sizeof(entry)); /* ISO C has no cast from data to function pointers */
    static const msa__backend_host host = {msa__set_error};
    backend = symbol ? entry(MSA__BACKEND_ABI, &host) : NULL;
    if (!backend) snprintf(why, sizeof(why), "%s is of another version", PLUGIN_FILE);
}

msa_status msa__cuda_backend(const msa__backend **out)
{
    pthread_once(&once, load);
    if (!backend) {
        return MSA_FAIL(MSA_EUNSUPPORTED, "context: backend = cuda, not available: %s", why);
    }
    *out = backend;
    return MSA_OK;
}
