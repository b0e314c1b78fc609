#ifndef KWBASE_STORAGE_VTAB_H_
#define KWBASE_STORAGE_VTAB_H_

#include "rowstore.h"

#ifdef __cplusplus
extern "C" {
#endif

// Lets SQL on the connection reach time-series tables: they are virtual tables of module "kwts".
int vtab_register(RowConn* conn);

// Opens the time-series engine of the process. Statements that came earlier wait for it.
// Returns NULL, or a message that the caller frees.
char* vtab_open_engine(const char* store, const char* log_dir, int vgroups);
void vtab_close_engine(void);

#ifdef __cplusplus
}
#endif

#endif  // KWBASE_STORAGE_VTAB_H_
