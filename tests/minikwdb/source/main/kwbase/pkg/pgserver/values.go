package pgserver

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"
	"math/big"
	"strconv"
	"strings"
	"time"

	"gitee.com/kwbasedb/kwbase/pkg/sql"
	"gitee.com/kwbasedb/kwbase/pkg/storage"
)

var epoch2000 = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// decodeParam reads a parameter in text or binary format.
func decodeParam(data []byte, oid int, isBinary bool) (storage.Value, error) {
	if data == nil {
		return nil, nil
	}
	if isBinary {
		return decodeBinary(data, oid)
	}
	value := string(data)
	switch oid {
	case sql.OIDInt2, sql.OIDInt4, sql.OIDInt8:
		return strconv.ParseInt(value, 10, 64)
	case sql.OIDFloat4, sql.OIDFloat8:
		return strconv.ParseFloat(value, 64)
	case sql.OIDBool:
		if strings.HasPrefix(strings.ToLower(value), "t") || value == "1" {
			return int64(1), nil
		}
		return int64(0), nil
	case sql.OIDBytes:
		if strings.HasPrefix(value, `\x`) {
			return hex.DecodeString(value[2:])
		}
		return data, nil
	}
	return value, nil
}

func decodeBinary(data []byte, oid int) (storage.Value, error) {
	switch {
	case oid == sql.OIDBytes:
		return data, nil
	case oid == sql.OIDBool && len(data) == 1:
		return int64(data[0]), nil
	case oid == sql.OIDInt2 && len(data) == 2:
		return int64(int16(binary.BigEndian.Uint16(data))), nil
	case oid == sql.OIDInt4 && len(data) == 4:
		return int64(int32(binary.BigEndian.Uint32(data))), nil
	case oid == sql.OIDInt8 && len(data) == 8:
		return int64(binary.BigEndian.Uint64(data)), nil
	case oid == sql.OIDFloat4 && len(data) == 4:
		return float64(math.Float32frombits(binary.BigEndian.Uint32(data))), nil
	case oid == sql.OIDFloat8 && len(data) == 8:
		return math.Float64frombits(binary.BigEndian.Uint64(data)), nil
	case (oid == sql.OIDTimestamp || oid == sql.OIDTimestampTZ) && len(data) == 8:
		micros := int64(binary.BigEndian.Uint64(data))
		return epoch2000.Add(time.Duration(micros) * time.Microsecond).Format("2006-01-02 15:04:05.999999+00:00"), nil
	case oid == sql.OIDDate && len(data) == 4:
		return epoch2000.AddDate(0, 0, int(int32(binary.BigEndian.Uint32(data)))).Format("2006-01-02"), nil
	case oid == sql.OIDUUID && len(data) == 16:
		return fmt.Sprintf("%x-%x-%x-%x-%x", data[:4], data[4:6], data[6:8], data[8:10], data[10:]), nil
	case oid == sql.OIDDecimal && len(data) >= 8:
		return decodeDecimal(data), nil
	case oid == sql.OIDJSONB && len(data) > 1:
		return string(data[1:]), nil
	}
	return string(data), nil
}

// decodeDecimal reads the wire's base-10000 digits.
func decodeDecimal(data []byte) string {
	count, weight := int(binary.BigEndian.Uint16(data)), int(int16(binary.BigEndian.Uint16(data[2:])))
	negative, scale := binary.BigEndian.Uint16(data[4:]) == 0x4000, int(binary.BigEndian.Uint16(data[6:]))
	value := new(big.Rat)
	for i := 0; i < count && 10+2*i <= len(data); i++ {
		digit := new(big.Rat).SetInt64(int64(binary.BigEndian.Uint16(data[8+2*i:])))
		power := new(big.Rat).SetInt(new(big.Int).Exp(big.NewInt(10000), big.NewInt(int64(abs(weight-i))), nil))
		if weight < i {
			power.Inv(power)
		}
		value.Add(value, digit.Mul(digit, power))
	}
	if negative {
		value.Neg(value)
	}
	return value.FloatString(scale)
}

func abs(n int) int {
	if n < 0 {
		return -n
	}
	return n
}

// encodeBinary is for clients that ask for binary results; ok is false for types that only go as text.
func encodeBinary(v storage.Value, oid int) (out []byte, ok bool) {
	var buffer [8]byte
	switch x := v.(type) {
	case int64:
		binary.BigEndian.PutUint64(buffer[:], uint64(x))
		width := map[int]int{sql.OIDBool: 1, sql.OIDInt2: 2, sql.OIDInt4: 4, sql.OIDInt8: 8}[oid]
		return buffer[8-width:], width > 0
	case float64:
		binary.BigEndian.PutUint64(buffer[:], math.Float64bits(x))
		return buffer[:], oid == sql.OIDFloat8
	case string:
		return []byte(x), oid == sql.OIDText || oid == sql.OIDVarchar
	case []byte:
		return x, true
	}
	return nil, v == nil
}
