// Package helm installs what HelmCharts ask for, by Helm's own packages and without a
// pod of its own.
//
// A HelmChart becomes one release, in the namespace it names. What is to be released, and
// with which values, is summed up in a checksum, which is a label of the release; so what
// is left to do can be told from the cluster alone, whatever end podo last came to. That is
// decide's work. A release that was cut short is told by its status, and finished.
//
// Of HelmCharts only the metadata is remembered, and of Secrets those alone that a chart
// names: charts are large, and work is rare. Charts that were fetched are kept, one for
// each HelmChart, and are used again if their source does not answer.
package helm
