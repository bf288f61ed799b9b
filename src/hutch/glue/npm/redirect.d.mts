export interface RedirectOptions {
  /** The server's URL, with or without `/api`. Default: the variable `HUTCH_URL`. */
  url?: string | URL;
  /** Where ports of sandboxes are reached. Default: the variable `HUTCH_INGRESS_URL`; without it they are not redirected. */
  ingressUrl?: string | URL;
}

/**
 * From here on the vendor's clients in this thread talk to the server at `url`. Called again, to another one.
 * Importing the package calls it when `HUTCH_URL` is set.
 *
 * @throws {TypeError} when there is no URL.
 */
export function redirect(options?: RedirectOptions): void;
