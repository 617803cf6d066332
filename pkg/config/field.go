package config

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// EnvPrefix starts the environment spelling of every setting, and K3sPrefix the
// weaker spelling that people bring along from k3s.
const (
	EnvPrefix = "PODO_"
	K3sPrefix = "K3S_"
)

// A Field is one setting inside a config struct.
type Field struct {
	Name        string   // as in --name and name:
	Aliases     []string // other spellings; those of one letter are for command lines only
	Help        string
	Placeholder string // what the value looks like, in help: "FILE"
	Section     string // heading it is listed under
	Shared      bool   // every server must hold the same value
	Hidden      bool   // works, but help does not show it
	Deprecated  string // what to use instead
	Args        bool   // holds flags for a component, as NAME=VALUE

	env   string // further environment spelling, without prefix
	split bool   // a comma separates values wherever they are written
	mixed bool   // its values mean the same in any order, however often each is given
	value reflect.Value
}

// Fields lists the settings in cfg, which must point to a struct, in source order.
func Fields(cfg any) []Field { return walk(reflect.ValueOf(cfg).Elem(), "", nil) }

func walk(v reflect.Value, section string, out []Field) []Field {
	for i := range v.NumField() {
		sf, fv := v.Type().Field(i), v.Field(i)
		tag := sf.Tag.Get
		under := section
		if s := tag("section"); s != "" {
			under = s
		}
		switch {
		case sf.Name == "_": // the heading of what follows in this struct
			section = under
		case tag("name") != "":
			f := Field{
				Name: tag("name"), Help: tag("help"), Placeholder: tag("placeholder"), Section: under,
				Shared: tag("shared") == "true", Hidden: tag("hidden") == "true", Deprecated: tag("deprecated"),
				Args: tag("args") == "true", env: tag("env"), split: tag("split") == "true",
				mixed: tag("order") == "any", value: fv,
			}
			if a := tag("alias"); a != "" {
				f.Aliases = strings.Split(a, ",")
			}
			out = append(out, f)
		case fv.Kind() == reflect.Struct:
			out = walk(fv, under, out)
		}
	}
	return out
}

// Shared are the settings that all servers of a cluster must have the same, by name,
// each as a user would write it. What means the same reads the same.
func Shared(cfg Server) map[string]string {
	out := map[string]string{}
	for _, f := range Fields(&cfg) {
		if !f.Shared {
			continue
		}
		values := f.Values()
		if f.mixed {
			slices.Sort(values)
			values = slices.Compact(values)
		}
		out[f.Name] = strings.Join(values, ",")
	}
	return out
}

// A Section is a heading and the fields below it.
type Section struct {
	Title  string
	Fields []Field
}

// Sections groups fields by heading, in order of first appearance. Flags for
// Kubernetes' own components come last: few people need them.
func Sections(fields []Field) []Section {
	var out, last []Section
	for _, f := range fields {
		list := &out
		if f.Args || f.value.Kind() == reflect.Map {
			list = &last
		}
		i := slices.IndexFunc(*list, func(s Section) bool { return s.Title == f.Section })
		if i < 0 {
			*list = append(*list, Section{Title: f.Section})
			i = len(*list) - 1
		}
		(*list)[i].Fields = append((*list)[i].Fields, f)
	}
	return append(out, last...)
}

// Spellings are the names a configuration file may use for the field.
func (f Field) Spellings() []string {
	out := []string{f.Name}
	for _, a := range f.Aliases {
		if len(a) > 1 {
			out = append(out, a)
		}
	}
	return out
}

// Envs are the field's environment spellings, the preferred one first.
func (f Field) Envs() []string { return f.envs(EnvPrefix) }

// K3sEnvs are the spellings that k3s uses for the same setting.
func (f Field) K3sEnvs() []string { return f.envs(K3sPrefix) }

func (f Field) envs(prefix string) []string {
	var out []string
	for _, name := range f.Spellings() {
		out = append(out, prefix+strings.ToUpper(strings.ReplaceAll(name, "-", "_")))
	}
	if f.env != "" {
		out = append(out, prefix+f.env)
	}
	return out
}

// IsBool reports whether the field may be given without a value on a command line.
func (f Field) IsBool() bool { return f.value.Kind() == reflect.Bool }

// IsList reports whether the field holds any number of values.
func (f Field) IsList() bool { return f.value.Kind() == reflect.Slice || f.IsMap() }

// IsMap reports whether the field holds named values.
func (f Field) IsMap() bool { return f.value.Kind() == reflect.Map }

// SplitsAtCommas reports whether a comma separates values wherever they are written.
func (f Field) SplitsAtCommas() bool { return f.split || f.IsMap() }

// Kind says what a value is, for people: "true or false", "number", "list of CIDR".
func (f Field) Kind() string {
	switch f.value.Kind() {
	case reflect.Slice:
		return "list of " + plural(one(f.value.Type().Elem()))
	case reflect.Map:
		return "list of NAME=VALUE"
	}
	return one(f.value.Type())
}

func one(t reflect.Type) string {
	switch t {
	case reflect.TypeFor[netip.Addr]():
		return "IP address"
	case reflect.TypeFor[netip.Prefix]():
		return "CIDR"
	case reflect.TypeFor[Secret]():
		return "secret"
	}
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.Int:
		return "number"
	}
	return "text"
}

func plural(s string) string {
	switch s {
	case "text":
		return "texts"
	case "IP address":
		return "IP addresses"
	}
	return s + "s"
}

// Values are the field's current values as they would be written, with secrets
// hidden. A setting that is not given has none.
func (f Field) Values() []string {
	switch f.value.Kind() {
	case reflect.Slice:
		var out []string
		for i := range f.value.Len() {
			out = append(out, text(f.value.Index(i)))
		}
		return out
	case reflect.Map:
		var out []string
		for _, k := range f.value.MapKeys() {
			out = append(out, k.String()+"="+f.value.MapIndex(k).String())
		}
		slices.Sort(out)
		return out
	}
	if s := text(f.value); s != "" {
		return []string{s}
	}
	return nil
}

// String is the current value on one line, with secrets hidden.
func (f Field) String() string { return strings.Join(f.Values(), ",") }

// Value is the current value for an encoder: a bool, an int, a string, a []string
// or a map[string]string. Secrets are hidden.
func (f Field) Value() any {
	switch v := f.value.Interface().(type) {
	case bool, int:
		return v
	case map[string]string:
		return v
	}
	if f.IsList() {
		return append([]string{}, f.Values()...)
	}
	return f.String()
}

func text(v reflect.Value) string {
	switch x := v.Interface().(type) {
	case netip.Addr:
		if !x.IsValid() {
			return ""
		}
		return x.String()
	case fmt.Stringer:
		return x.String()
	}
	return fmt.Sprint(v.Interface())
}

// FromEnv reads the text of an environment variable as values of the field. There
// is no other way to write a list there, so commas separate; only component flags,
// whose values hold commas of their own, are separated by blanks.
func (f Field) FromEnv(text string) []string {
	switch {
	case f.Args:
		return strings.Fields(text)
	case f.IsList():
		return cut(text)
	}
	return []string{text}
}

func cut(text string) []string {
	parts := strings.Split(text, ",")
	for i := range parts {
		parts[i] = strings.TrimSpace(parts[i])
	}
	return parts
}

// set replaces the field's value, or adds to it if add is true. It returns every
// mistake in texts, and changes nothing if there is one.
func (f Field) set(texts []string, add bool) []error {
	if f.SplitsAtCommas() {
		var parts []string
		for _, t := range texts {
			parts = append(parts, cut(t)...)
		}
		texts = parts
	}
	if f.IsList() && slices.ContainsFunc(texts, blank) {
		return []error{fmt.Errorf("%q: one of the values is empty; take it out, with its comma if it has one", strings.Join(texts, ","))}
	}
	switch f.value.Kind() {
	case reflect.Slice:
		return f.setList(texts, add)
	case reflect.Map:
		return f.setMap(texts, add)
	}
	if add {
		return []error{fmt.Errorf("holds one value, so nothing can be added to it; write it without the +")}
	}
	if len(texts) != 1 {
		return []error{fmt.Errorf("takes one value, not a list of %d", len(texts))}
	}
	v := reflect.New(f.value.Type()).Elem()
	if err := parse(v, texts[0]); err != nil {
		return []error{err}
	}
	f.value.Set(v)
	return nil
}

func blank(text string) bool { return strings.TrimSpace(text) == "" }

func (f Field) setList(texts []string, add bool) []error {
	var errs []error
	list := reflect.MakeSlice(f.value.Type(), 0, len(texts))
	if add {
		list = reflect.AppendSlice(list, f.value)
	}
	for _, t := range texts {
		item := reflect.New(f.value.Type().Elem()).Elem()
		if err := parse(item, t); err != nil {
			errs = append(errs, err)
			continue
		}
		list = reflect.Append(list, item)
	}
	if errs == nil {
		f.value.Set(list)
	}
	return errs
}

func (f Field) setMap(texts []string, add bool) []error {
	var errs []error
	m := map[string]string{}
	if old, ok := f.value.Interface().(map[string]string); ok && add {
		for k, v := range old {
			m[k] = v
		}
	}
	for _, t := range texts {
		k, v, ok := strings.Cut(t, "=")
		if k, v = strings.TrimSpace(k), strings.TrimSpace(v); !ok || k == "" {
			errs = append(errs, fmt.Errorf("%q is not NAME=VALUE", t))
			continue
		}
		m[k] = v
	}
	if errs == nil {
		f.value.Set(reflect.ValueOf(m))
	}
	return errs
}

func parse(v reflect.Value, text string) error {
	switch p := v.Addr().Interface().(type) {
	case *netip.Addr:
		a, err := parseAddr(text)
		*p = a
		return err
	case *netip.Prefix:
		c, err := parsePrefix(text)
		*p = c
		return err
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(text)
	case reflect.Bool:
		b, err := strconv.ParseBool(text)
		if err != nil {
			return fmt.Errorf("%q is neither true nor false", text)
		}
		v.SetBool(b)
	case reflect.Int:
		n, err := strconv.Atoi(text)
		if err != nil {
			return fmt.Errorf("%q is not a whole number", text)
		}
		v.SetInt(int64(n))
	default:
		return fmt.Errorf("config field of kind %s cannot be parsed", v.Kind())
	}
	return nil
}

func parseAddr(text string) (netip.Addr, error) {
	a, err := netip.ParseAddr(text)
	switch {
	case err != nil:
		return netip.Addr{}, fmt.Errorf("%q is not an IP address", text)
	case a.Zone() != "":
		return netip.Addr{}, fmt.Errorf("%q has a zone, which other nodes could not use; give an address without %%%s", text, a.Zone())
	case a.Is4In6():
		return netip.Addr{}, fmt.Errorf("%q is an IPv4 address in IPv6 form; write it as %s", text, a.Unmap())
	}
	return a, nil
}

func parsePrefix(text string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(text)
	if err != nil {
		if a, bad := netip.ParseAddr(text); bad == nil {
			return netip.Prefix{}, fmt.Errorf("%q is one address, not a range; a range ends in its length, such as %s/%d", text, a, a.BitLen()/2)
		}
		return netip.Prefix{}, fmt.Errorf("%q is not a range such as 10.42.0.0/16", text)
	}
	if p.Addr().Is4In6() {
		return netip.Prefix{}, fmt.Errorf("%q is an IPv4 range in IPv6 form; write it as IPv4", text)
	}
	if p != p.Masked() {
		return netip.Prefix{}, fmt.Errorf("%q names an address inside the range; the range itself is %s", text, p.Masked())
	}
	return p, nil
}
