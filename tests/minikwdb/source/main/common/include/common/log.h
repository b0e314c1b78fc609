#pragma once

#include <string>

namespace kwdb {

/// Opens the time-series log: a dated file in `dir`, with `TsEngine.log` as a link to it.
void OpenLog(const std::string& dir);

/// Writes one line: level letter, UTC time, source file, text. Silent before OpenLog.
void Log(char level, const char* file, const std::string& text);

}  // namespace kwdb
