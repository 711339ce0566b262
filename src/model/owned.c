/* Memory that the functions of msa/model.h hand to their caller comes from malloc. */
#include "msa/model.h"

#include <stdlib.h>

void msa_free(void *ptr)
{
    free(ptr);
}
