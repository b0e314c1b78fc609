package pgserver

import (
	"gitee.com/kwbasedb/kwbase/pkg/sql"
	"minikw.example/pgwire"
)

// extended handles Parse, Bind, Describe, Execute and Close.
func (c *conn) extended(kind byte, body pgwire.Body) error {
	switch kind {
	case 'P':
		return c.parse(body)
	case 'B':
		return c.bind(body)
	case 'D':
		return c.describeNamed(body)
	case 'E':
		return c.execute(body)
	case 'C':
		what, name := body.Byte(), body.Text()
		if what == 'S' {
			delete(c.named, name)
		} else {
			delete(c.portals, name)
		}
		return c.Begin('3').End()
	case 'd', 'c', 'f': // what is left of a refused COPY
		return nil
	}
	return &sql.Error{Code: "08P01", Message: "unrecognized client message type " + string(rune(kind))}
}

func (c *conn) parse(body pgwire.Body) error {
	name, query := body.Text(), body.Text()
	statements, err := sql.Split(query)
	if err != nil {
		return err
	}
	if len(statements) > 1 {
		return &sql.Error{Code: "42601", Message: "cannot insert multiple commands into a prepared statement"}
	}
	p := prepared{empty: len(statements) == 0}
	if !p.empty {
		p.statement = statements[0]
		p.types = make([]int, p.statement.Params())
	}
	for i, n := 0, body.Uint16(); i < n; i++ {
		if oid := int(body.Uint32()); i < len(p.types) {
			p.types[i] = oid
		}
	}
	c.named[name] = p
	return c.Begin('1').End()
}

func (c *conn) bind(body pgwire.Body) error {
	portalName, name := body.Text(), body.Text()
	p, known := c.named[name]
	if !known {
		return &sql.Error{Code: "26000", Message: "unknown prepared statement \"" + name + "\""}
	}
	formats := readFormats(&body)
	out := &portal{prepared: p}
	for i, n := 0, body.Uint16(); i < n; i++ {
		oid := 0
		if i < len(p.types) {
			oid = p.types[i]
		}
		value, err := decodeParam(body.Sized(), oid, formatOf(formats, i) == 1)
		if err != nil {
			return &sql.Error{Code: "22P02", Message: err.Error()}
		}
		out.params = append(out.params, value)
	}
	out.formats = readFormats(&body)
	c.portals[portalName] = out
	return c.Begin('2').End()
}

func readFormats(body *pgwire.Body) []int {
	var formats []int
	for n := body.Uint16(); n > 0; n-- {
		formats = append(formats, body.Uint16())
	}
	return formats
}

func (c *conn) describeNamed(body pgwire.Body) error {
	what, name := body.Byte(), body.Text()
	if what == 'P' {
		p := c.portals[name]
		if p == nil {
			return &sql.Error{Code: "34000", Message: "unknown portal \"" + name + "\""}
		}
		// The columns of a portal are known from its result, so it runs now and Execute sends the rows.
		if err := c.run(p); err != nil {
			return err
		}
		return c.describeResult(p.result, p.formats)
	}
	p, known := c.named[name]
	if !known {
		return &sql.Error{Code: "26000", Message: "unknown prepared statement \"" + name + "\""}
	}
	c.Begin('t').Int16(len(p.types))
	for _, oid := range p.types {
		if oid == 0 {
			oid = sql.OIDText
		}
		c.Int32(oid)
	}
	if err := c.End(); err != nil {
		return err
	}
	if p.empty {
		return c.Begin('n').End()
	}
	columns, err := c.session.Describe(p.statement)
	if err != nil {
		return err
	}
	return c.describeResult(&sql.Result{Columns: columns}, nil)
}

func (c *conn) describeResult(result *sql.Result, formats []int) error {
	if result == nil || result.Columns == nil {
		return c.Begin('n').End()
	}
	c.describe(result.Columns, formats)
	return nil
}

func (c *conn) run(p *portal) error {
	if p.empty || p.result != nil {
		return nil
	}
	result, err := c.session.Execute(p.statement, p.params)
	p.result = result
	return err
}

func (c *conn) execute(body pgwire.Body) error {
	p := c.portals[body.Text()]
	if p == nil {
		return &sql.Error{Code: "34000", Message: "unknown portal"}
	}
	if p.empty {
		return c.Begin('I').End()
	}
	if err := c.run(p); err != nil {
		return err
	}
	c.rows(p.result, p.formats)
	tag := p.result.Tag
	p.result.Rows = nil
	return c.Begin('C').Text(tag).End()
}
