#pragma once

#include <string>

namespace kwdbts {

/// Reads the version log of a vgroup and marks it with this release's format.
/// Throws Corruption where the log holds a record that this release does not know.
void RecoverVersion(const std::string& vgroup_dir);

}  // namespace kwdbts
