/* See args.h. */
#include "base/args.h"

#include "base/error.h"

#include <string.h>

msa_status msa__args_copy(const char *op, void *ours, size_t our_size, const void *args)
{
    uint32_t head[2]; /* struct_size, flags */
    if (!args) return MSA_FAIL(MSA_EINVAL, "%s: args = NULL, must be a pointer", op);
    memcpy(head, args, sizeof(head));
    if (head[0] < sizeof(head)) {
        return MSA_FAIL(MSA_EINVAL, "%s: args.struct_size = %u, must be sizeof(args)", op, head[0]);
    }
    if (head[1] != 0) return MSA_FAIL(MSA_EINVAL, "%s: args.flags = %u, must be 0", op, head[1]);
    const unsigned char *bytes = args;
    for (size_t i = our_size; i < head[0]; i++) {
        if (bytes[i]) {
            return MSA_FAIL(MSA_EVERSION,
                            "%s: args.struct_size = %u, byte %zu is set but this library knows %zu",
                            op, head[0], i, our_size);
        }
    }
    memset(ours, 0, our_size);
    memcpy(ours, args, head[0] < our_size ? head[0] : our_size);
    return MSA_OK;
}
