// The parts of riffle._core, one file per group of calls. They only convert arguments; the library
// defines and checks their meaning. Docstrings and signatures are in riffle/*.py.
#pragma once

#include <nanobind/nanobind.h>

namespace riffle::python {

void BindAttention(nanobind::module_& m);
void BindCompressKv(nanobind::module_& m);
void BindIndexer(nanobind::module_& m);
void BindIndexKeys(nanobind::module_& m);
void BindDenseAttention(nanobind::module_& m);
void BindKvCache(nanobind::module_& m);
void BindLinear(nanobind::module_& m);
void BindRuntime(nanobind::module_& m);
void BindSampling(nanobind::module_& m);
void BindSparseAttention(nanobind::module_& m);
void BindTopK(nanobind::module_& m);
void BindXlaFfi(nanobind::module_& m);
void BindXlaSparse(nanobind::module_& m);  // after BindXlaFfi
void BindTorch(nanobind::module_& m);
void BindWriteKv(nanobind::module_& m);

}  // namespace riffle::python
