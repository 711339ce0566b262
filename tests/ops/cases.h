/* The case table of the attention operators: shapes, and the dtypes and layouts each is run in. */
#ifndef MSA_TESTS_CASES_H
#define MSA_TESTS_CASES_H

#include "ops/problem.h"

/* Calls visit for every case, in its dtypes and layouts; counts are up to the visitor. A device
 * backend meets larger shapes besides. MSA_TEST_REDUCED visits each shape once. */
typedef void (*case_visitor)(const problem_spec *spec, void *arg);
void for_each_case(case_visitor visit, void *arg);

/* The same shapes packed, in dtypes that gradients take. */
void for_each_packed_case(case_visitor visit, void *arg);

/* A named shape of the table in f32, paged. */
problem_spec case_named(const char *name);

#endif
