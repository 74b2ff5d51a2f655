// Index keys, and positions as slots: Python's arguments to riffle/indexer.h and back.
#include <optional>

#include "bindings.h"
#include "index_key_pool.h"
#include "kernel_scope.h"
#include "riffle/indexer.h"
#include "sparse_arguments.h"

namespace riffle::python {
namespace {

void PyWriteIndexKeys(nb::handle x_object, nb::handle slots_object, nb::handle pages_object,
                      nb::handle scales, nb::handle format, nb::handle hadamard) {
  const Array x(x_object, "keys");
  CheckAxes(x, 2, "[tokens, head_dim]");
  CheckLastAxisContiguous(x);
  const MatrixView view{x.data(), FloatingDType(x), x.axis(0).size, x.axis(1).size,
                        x.axis(0).stride};
  const Int32Span slots(slots_object, "slots");
  const KeyPool<IndexKeysOut> pages(pages_object, scales, format, view.cols, "pages", "scales",
                                    Access::kWrite);
  WriteIndexKeysOptions options;
  options.hadamard = Bool(hadamard, "hadamard");
  const KernelScope scope;
  WriteIndexKeys(view, slots.get(), pages.view(), options);
}

nb::object PyHadamard(nb::handle object) {
  const Array x(object, "x");
  CheckAxes(x, 2, "[rows, n]");
  CheckLastAxisContiguous(x);
  const MatrixView view{x.data(), FloatingDType(x), x.axis(0).size, x.axis(1).size,
                        x.axis(0).stride};
  OutMatrix out(x, nb::none(), x.element(), view.rows, view.cols);
  {
    const KernelScope scope;
    Hadamard(view, {out.data(), out.stride()});
  }
  return out.Finish();
}

nb::object PyPositionsToSlots(nb::handle positions_object, nb::handle table_object,
                              nb::handle page_size, nb::handle cu_q_lens_object) {
  const Array positions(positions_object, "positions");
  CheckElement(positions, Element::kI32);
  CheckAxes(positions, 2, "[tokens, n]");
  CheckLastAxisContiguous(positions);
  const OptionalMatrix table(table_object, "page_table", Element::kI32, "[sequences, max_pages]");
  if (!table) {
    ThrowTypeError("page_table must be an array, not None");
  }
  std::optional<Int32Span> cu_q_lens;
  IndexSpan cu;
  if (!cu_q_lens_object.is_none()) {
    cu = cu_q_lens.emplace(cu_q_lens_object, "cu_q_lens").get();
  }
  const PositionsView view{static_cast<const int32_t*>(positions.data()), positions.axis(0).size,
                           positions.axis(1).size, positions.axis(0).stride};
  const PageTableView pages{table.data<int32_t>(), table.rows(), table.cols(), table.stride(),
                            Int64(page_size, "page_size")};
  OutMatrix out(positions, nb::none(), Element::kI32, view.tokens, view.cols);
  {
    const KernelScope scope;
    PositionsToSlots(view, pages, cu, {static_cast<int32_t*>(out.data()), out.stride()});
  }
  return out.Finish();
}

nb::object PyExpandBlocks(nb::handle blocks_object, nb::handle block_object,
                          nb::handle ends_object) {
  const Array blocks(blocks_object, "blocks");
  CheckElement(blocks, Element::kI32);
  CheckAxes(blocks, 2, "[tokens, n]");
  CheckLastAxisContiguous(blocks);
  const Int32Span ends(ends_object, "ends");
  const PositionsView view{static_cast<const int32_t*>(blocks.data()), blocks.axis(0).size,
                           blocks.axis(1).size, blocks.axis(0).stride};
  const int64_t block = Int64(block_object, "block");
  ExpandBlocks({nullptr, 0, view.cols, 0}, block, {}, {});  // checks block before allocating
  OutMatrix out(blocks, nb::none(), Element::kI32, view.tokens, view.cols * block);
  {
    const KernelScope scope;
    ExpandBlocks(view, block, ends.get(), {static_cast<int32_t*>(out.data()), out.stride()});
  }
  return out.Finish();
}

}  // namespace

void BindIndexKeys(nb::module_& m) {
  const auto any = nb::arg().none();  // the functions below handle None
  m.def("write_index_keys", &PyWriteIndexKeys, any, any, any, any, any, any);
  m.def("hadamard", &PyHadamard, any);
  m.def("positions_to_slots", &PyPositionsToSlots, any, any, any, any);
  m.def("expand_blocks", &PyExpandBlocks, any, any, any);
}

}  // namespace riffle::python
