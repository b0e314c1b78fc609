#pragma once

// What this release knows of the files on disk. Releases differ in these lines.

namespace kwdbts {

/// The newest kind of record in a TSVERSION log that this release can read, and that it writes
/// on opening a store. An older release stops at a kind that it does not know.
constexpr int kNewestUpdateType = 11;

/// The name ending of the block files that this release reads and writes.
constexpr const char* kBlockSuffix = ".blk";

}  // namespace kwdbts
