package logging

import "regexp"

// Discreet is an error of the API server without the value that it quotes: when that is of
// the wrong type, it may be what a Secret is to hold. A value may have braces and lines of
// its own, so all up to the last brace goes.
func Discreet(err error) string {
	quoted := regexp.MustCompile(`(?s)got &(value\.valueUnstructured)?\{.*\}`)
	return quoted.ReplaceAllString(err.Error(), "got something else")
}
