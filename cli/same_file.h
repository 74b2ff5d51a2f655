// Whether two paths name one file, which need not exist yet.
#pragma once

#include <string>

namespace riffle::cli {

// Through "./f", symbolic and hard links, and links to what does not exist yet. Devices, such as
// /dev/null, are no files in this sense.
bool IsSameFile(const std::string& a, const std::string& b);

}  // namespace riffle::cli
