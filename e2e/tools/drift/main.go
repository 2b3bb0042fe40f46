// Compares two sets of Kubernetes manifests by meaning: which objects there are, and each of their fields.
// Usage: drift A.yaml B.yaml. It prints every difference; exit status 0 means none.
//
// What is Helm's own is left out: its chart and managed-by labels, and Namespace objects, which a chart does not hold
// (`helm install --create-namespace` makes them). Whoever renders the two gives both the same name and namespace.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"

	"go.yaml.in/yaml/v3"
)

var helmLabels = []string{"helm.sh/chart", "app.kubernetes.io/managed-by"}

type object = map[string]any

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: drift A.yaml B.yaml")
		os.Exit(2)
	}
	sets := [2]map[string]object{}
	for i, path := range os.Args[1:] {
		text, err := os.ReadFile(path)
		if err == nil {
			sets[i], err = load(text)
		}
		if err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", path, err)
			os.Exit(2)
		}
	}
	differences := compare(sets[0], sets[1])
	for _, line := range differences {
		fmt.Println(line)
	}
	if len(differences) > 0 {
		fmt.Printf("%d differences between %s (-) and %s (+)\n", len(differences), os.Args[1], os.Args[2])
		os.Exit(1)
	}
}

// load reads a stream of documents, keyed by what the API server tells objects apart by.
func load(text []byte) (map[string]object, error) {
	objects := map[string]object{}
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	for {
		var o object
		err := decoder.Decode(&o)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		if len(o) == 0 || o["kind"] == "Namespace" {
			continue
		}
		metadata, _ := o["metadata"].(object)
		if metadata == nil || metadata["name"] == nil {
			return nil, fmt.Errorf("an object of kind %v has no name", o["kind"])
		}
		key := fmt.Sprintf("%v %v %v/%v", o["apiVersion"], o["kind"], metadata["namespace"], metadata["name"])
		if objects[key] != nil {
			return nil, fmt.Errorf("%s is there twice", key)
		}
		dropHelmLabels(o)
		objects[key] = o
	}
	if len(objects) == 0 {
		return nil, errors.New("no objects")
	}
	return objects, nil
}

// dropHelmLabels takes the labels out of the object and of every template in it.
func dropHelmLabels(value any) {
	switch v := value.(type) {
	case object:
		if labels, ok := v["labels"].(object); ok {
			for _, name := range helmLabels {
				delete(labels, name)
			}
		}
		for _, child := range v {
			dropHelmLabels(child)
		}
	case []any:
		for _, child := range v {
			dropHelmLabels(child)
		}
	}
}

func compare(a, b map[string]object) []string {
	var out []string
	for _, key := range sortedKeys(a, b) {
		switch {
		case b[key] == nil:
			out = append(out, "- "+key)
		case a[key] == nil:
			out = append(out, "+ "+key)
		default:
			out = append(out, differ(key+" ", a[key], b[key])...)
		}
	}
	return out
}

// differ walks two values side by side and returns a line for each leaf that is not the same.
func differ(path string, a, b any) []string {
	if x, ok := a.(object); ok {
		if y, ok := b.(object); ok {
			var out []string
			for _, key := range sortedKeys(x, y) {
				out = append(out, differ(path+"."+key, x[key], y[key])...)
			}
			return out
		}
	}
	if x, ok := a.([]any); ok {
		if y, ok := b.([]any); ok && len(x) == len(y) {
			var out []string
			for i := range x {
				out = append(out, differ(fmt.Sprintf("%s[%d]", path, i), x[i], y[i])...)
			}
			return out
		}
	}
	if reflect.DeepEqual(plain(a), plain(b)) {
		return nil
	}
	return []string{fmt.Sprintf("%s: - %v + %v", path, a, b)}
}

// plain makes numbers comparable: the same one may be written as 3 and as 3.0.
func plain(value any) any {
	if number, ok := value.(int); ok {
		return float64(number)
	}
	return value
}

func sortedKeys[V any](a, b map[string]V) []string {
	var keys []string
	for key := range a {
		keys = append(keys, key)
	}
	for key := range b {
		if _, both := a[key]; !both {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys
}
