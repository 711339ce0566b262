/* Opening a run. */
#ifndef MSA_TRAIN_TRAINER_OPEN_H
#define MSA_TRAIN_TRAINER_OPEN_H

#include "train/trainer.h"

/* Fill a zeroed trainer whose context is set; what was made stays when it fails. */
MSA_CHECK_RESULT msa_status msa__trainer_open(msa_trainer *t, const msa_trainer_args *args);

/* What a checkpoint is made of. */
msa__snapshot msa__trainer_snapshot(msa_trainer *t);

#endif
