#include "testing/ranges_check.h"

#include <algorithm>
#include <cstring>
#include <sstream>

#include "riffle/error.h"
#include "testing/reference.h"
#include "testing/targets.h"
#include "testing/text.h"

namespace riffle::test {

std::string Describe(const Ranges& ranges) {
  std::ostringstream text;
  text << "k=" << ranges.k << (ranges.sorted ? " sorted" : " unsorted")
       << (ranges.index_order_if_short ? " index order if short" : "")
       << " algorithm=" << static_cast<int>(ranges.algorithm) << " threads=" << ranges.threads
       << " gap=" << ranges.gap << " next_n=" << ranges.next_n << " ranges=";
  for (size_t row = 0; row < ranges.starts.size(); ++row) {
    text << '[' << ranges.starts[row] << ',' << ranges.ends[row] << ')';
  }
  return text.str();
}

Ranges DecodeRanges(const std::vector<int32_t>& seq_lens, int next_n) {
  Ranges ranges;
  ranges.seq_lens = seq_lens;
  ranges.next_n = next_n;
  for (const int64_t length : seq_lens) {
    for (int64_t i = 0; i < next_n; ++i) {
      const int64_t end = std::max<int64_t>(0, length - next_n + i + 1);
      ranges.starts.push_back(0);
      ranges.ends.push_back(static_cast<int32_t>(end));
    }
  }
  return ranges;
}

Outcome CheckRanges(const Input& input, const Ranges& ranges) {
  const MatrixView& x = input.view();
  Outcome outcome;
  Output out(x.rows, ranges.k, ranges.k + ranges.gap, sizeof(int32_t));
  const OutView<int32_t> indices{reinterpret_cast<int32_t*>(out.data()), out.stride()};
  TopKOptions options;
  options.sorted = ranges.sorted;
  options.index_order_if_short = ranges.index_order_if_short;
  options.algorithm = ranges.algorithm;
  options.pool = &PoolOf(ranges.threads);
  try {
    if (ranges.next_n > 0) {
      TopKPerRowDecode(x, ranges.seq_lens, ranges.next_n, ranges.k, indices, options);
    } else {
      TopKPerRow(x, ranges.starts, ranges.ends, ranges.k, indices, options);
    }
  } catch (const Error& error) {
    outcome.fault = Concat("threw: ", error.what());
    return outcome;
  }
  for (int64_t row = 0; row < x.rows && outcome.fault.empty(); ++row) {
    const int32_t start = ranges.starts[static_cast<size_t>(row)];
    std::vector<int32_t> best =
        ReferenceTopK(x, row, start, ranges.ends[static_cast<size_t>(row)], ranges.k);
    for (int32_t& column : best) column -= start;
    const bool in_index_order =
        ranges.index_order_if_short && ranges.ends[static_cast<size_t>(row)] - start <= ranges.k;
    if (in_index_order) std::ranges::sort(best);
    const std::vector<int32_t> answer =
        RowAnswer(out, row, best, ranges.k, ranges.sorted || in_index_order, &outcome.fault);
    for (int64_t col = 0; col < ranges.k; ++col) {
      out.Expect(row, col, &answer[static_cast<size_t>(col)]);
    }
    outcome.indices.insert(outcome.indices.end(), answer.begin(), answer.end());
  }
  if (outcome.fault.empty()) outcome.fault = out.Difference("indices");
  return outcome;
}

std::string CheckRangesOnAllTargets(const Input& input, const Ranges& ranges) {
  std::string fault;
  Outcome expected;
  const std::vector<std::string> targets = SweepTargets();
  for (const std::string& target : targets) {
    SetTarget(target);
    Outcome outcome = CheckRanges(input, ranges);
    if (target == targets.front()) expected = outcome;
    fault = Compare(expected, outcome);
    if (!fault.empty()) {
      fault =
          Concat("on ", target, ", ", Describe(input.spec()), " | ", Describe(ranges), ": ", fault);
      break;
    }
  }
  SetTarget("");
  return fault;
}

}  // namespace riffle::test
