// Whether two paths name one file, which need not exist yet.
#pragma once

#include <string>

namespace riffle::cli {

// Recognises "./f", symbolic and hard links, and links to files that do not exist yet. A device,
// such as /dev/null, is never the same file.
bool IsSameFile(const std::string& a, const std::string& b);

}  // namespace riffle::cli
